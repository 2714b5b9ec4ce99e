-- The catalog, version 4. Times are UTC, sizes bytes, durations seconds. docs/catalog.md describes each table.
-- New files are made from this text; older ones are migrated by migrations.py, and a test compares the results.

CREATE TABLE schema_migrations (
  number INTEGER PRIMARY KEY,
  name VARCHAR NOT NULL,
  applied TIMESTAMP NOT NULL,
  wanscope VARCHAR NOT NULL
);

-- facts about the file itself: `generation` increases with every change that affects searches
CREATE TABLE catalog_facts (name VARCHAR PRIMARY KEY, value BIGINT NOT NULL);
INSERT INTO catalog_facts VALUES ('generation', 0);

-- embeddings: the rows of content-addressed files, embeddings/<first two>/<key>.emb
CREATE TABLE embeddings (
  key VARCHAR PRIMARY KEY,      -- SHA-256 of shape, dtype, bytes, model, encoder and space
  content VARCHAR NOT NULL,     -- SHA-256 of shape, dtype and bytes alone
  created TIMESTAMP NOT NULL,
  model VARCHAR NOT NULL,       -- the model it was made with, '' where unknown
  encoder VARCHAR NOT NULL,     -- which text encoder: a hash of its weights, tokenizer, dtype; '' where unknown
  space VARCHAR NOT NULL,       -- text (raw encoder output), context (projected) or hidden
  dtype VARCHAR NOT NULL,
  tokens INTEGER NOT NULL,      -- real tokens: rows of zeros at the end are removed
  dim INTEGER NOT NULL,
  prompt VARCHAR,               -- the first prompt it was stored for
  source VARCHAR NOT NULL,      -- generate, python, operation, import ...
  label VARCHAR,
  norm DOUBLE NOT NULL,         -- length of the mean token
  raw_bytes BIGINT NOT NULL,    -- tokens x dim in its dtype
  file_bytes BIGINT NOT NULL,
  encode_seconds DOUBLE,        -- how long encoding the prompt took
  uses BIGINT NOT NULL,         -- how often it was read or reused
  last_used TIMESTAMP,
  origin VARCHAR NOT NULL       -- '' for this workspace's own, else the export or database it came from
);
CREATE TABLE embedding_prompts (
  prompt VARCHAR NOT NULL,
  encoder VARCHAR NOT NULL,
  environment VARCHAR NOT NULL, -- device and library versions, which may change the last bit
  key VARCHAR NOT NULL,
  PRIMARY KEY (prompt, encoder, environment)
);
CREATE TABLE embedding_tags (key VARCHAR NOT NULL, tag VARCHAR NOT NULL, PRIMARY KEY (key, tag));

-- operations: what was computed from what
CREATE TABLE vector_operations (
  id VARCHAR PRIMARY KEY,
  operation VARCHAR NOT NULL,
  result VARCHAR NOT NULL,
  created TIMESTAMP NOT NULL,
  seconds DOUBLE NOT NULL,
  bytes BIGINT NOT NULL,        -- inputs and result, uncompressed
  note VARCHAR NOT NULL,
  wanscope VARCHAR NOT NULL,
  torch VARCHAR NOT NULL
);
CREATE TABLE operation_inputs (
  operation VARCHAR NOT NULL,
  position INTEGER NOT NULL,
  name VARCHAR NOT NULL,
  key VARCHAR NOT NULL,
  PRIMARY KEY (operation, position)
);
CREATE TABLE operation_parameters (
  operation VARCHAR NOT NULL,
  name VARCHAR NOT NULL,
  value VARCHAR NOT NULL,       -- JSON
  PRIMARY KEY (operation, name)
);

-- cached figures
CREATE TABLE embedding_analysis (
  key VARCHAR NOT NULL, name VARCHAR NOT NULL, value DOUBLE NOT NULL, PRIMARY KEY (key, name)
);
CREATE TABLE embedding_similarities (
  key_a VARCHAR NOT NULL, key_b VARCHAR NOT NULL, metric VARCHAR NOT NULL, value DOUBLE NOT NULL,
  PRIMARY KEY (key_a, key_b, metric)
);

-- takes: an index of the folders
CREATE TABLE takes (
  id VARCHAR PRIMARY KEY,
  status VARCHAR NOT NULL,      -- complete or damaged
  damage VARCHAR NOT NULL,
  folder VARCHAR NOT NULL,      -- relative to the workspace
  made TIMESTAMP,
  model VARCHAR,
  variant VARCHAR,
  dtype VARCHAR,
  prompt VARCHAR,
  negative VARCHAR,
  seed BIGINT,
  width INTEGER,
  height INTEGER,
  frames INTEGER,
  fps DOUBLE,
  solver VARCHAR,
  steps INTEGER,
  shift DOUBLE,
  guidance VARCHAR,             -- a number, or keyframes as JSON
  latents BOOLEAN,
  edited BOOLEAN,
  seconds DOUBLE,
  bytes BIGINT,
  latents_sha256 VARCHAR,
  device VARCHAR,
  wanscope VARCHAR,
  torch VARCHAR,
  recipe VARCHAR,               -- JSON
  origin VARCHAR NOT NULL
);
CREATE TABLE variations (
  study VARCHAR NOT NULL,
  name VARCHAR NOT NULL,
  take VARCHAR NOT NULL,
  variation INTEGER NOT NULL,
  seed BIGINT NOT NULL,
  status VARCHAR NOT NULL,
  current BOOLEAN NOT NULL,
  slots VARCHAR NOT NULL,       -- JSON: which value filled which slot
  origin VARCHAR NOT NULL,
  PRIMARY KEY (study, name, take, origin)
);
CREATE TABLE edits (
  take VARCHAR NOT NULL,
  position INTEGER NOT NULL,
  kind VARCHAR NOT NULL,
  edit VARCHAR NOT NULL,        -- JSON
  planned BIGINT,
  applied BIGINT,
  PRIMARY KEY (take, position)
);

-- search: compact vectors of the mean tokens
CREATE TABLE search_basis (
  number INTEGER PRIMARY KEY,
  dim INTEGER NOT NULL,
  mean BLOB NOT NULL,           -- float32 [dim]
  axes BLOB NOT NULL,           -- float32 [256, dim]
  fitted_on BIGINT NOT NULL,
  created TIMESTAMP NOT NULL
);
CREATE TABLE search_vectors (
  key VARCHAR PRIMARY KEY,
  basis INTEGER NOT NULL,       -- 0: the unit vector itself, padded with zeros
  vector FLOAT[256] NOT NULL,
  rest FLOAT NOT NULL           -- squared length of what the vector leaves out
);

-- results of analyses
CREATE TABLE metrics (
  take VARCHAR NOT NULL,
  name VARCHAR NOT NULL,
  step INTEGER NOT NULL,        -- -1 for a figure of the whole take
  value DOUBLE NOT NULL,
  unit VARCHAR NOT NULL,
  source VARCHAR NOT NULL,      -- take.json, or the analysis
  PRIMARY KEY (take, name, step, source)
);
CREATE TABLE atlas (
  model VARCHAR NOT NULL,
  block INTEGER NOT NULL,
  site VARCHAR NOT NULL,
  strength DOUBLE NOT NULL,
  metric VARCHAR NOT NULL,
  value DOUBLE NOT NULL,
  low DOUBLE,                   -- of its interval
  high DOUBLE,
  pairs INTEGER NOT NULL,       -- paired seeds
  source VARCHAR NOT NULL,
  PRIMARY KEY (model, block, site, strength, metric, source)
);
