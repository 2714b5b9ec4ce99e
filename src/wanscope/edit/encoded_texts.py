"""The encoded texts of one recipe, and each donor's embedding.

Embeddings are raw (the encoder's output, before the transformer's projection), [L, D] of the real tokens, in the
encoder's dtype. Shape suffixes: L real tokens, D text dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wanscope.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.edit.amplify import Amplified, Mode
    from wanscope.edit.donor import Donor

Columns = tuple[int, ...]
# Token columns of an edit's words, by the text that contains them.
Places = dict[str, Columns]


@dataclass(frozen=True, eq=False)
class DonorText:
    """A donor's embedding [L, D]. note: shown to the user. amplified: how it was moved, if it was."""

    embedding: Tensor
    note: str = ""
    amplified: Amplified | None = None


@dataclass(frozen=True, eq=False)
class DonorTexts:
    """The encoded texts of one recipe, on the CPU. The tensors must not be changed in place.

    main, uncond: [L, D], what the sampling loop reads, with the weights of marked words applied. raw: embeddings [L, D]
    by text, as encoded. stored: stored embeddings [L, D] by hash. text_length: the number of positions that the model
    reads. places: for each edit that names words (by its position in the list), their columns in each text.
    word_texts: for each such edit and each of its words, the texts that contain the word.
    """

    prompt: str
    negative: str
    main: Tensor
    uncond: Tensor
    raw: Mapping[str, Tensor]
    text_length: int
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    places: Mapping[int, Places] = field(default_factory=dict)
    word_texts: Mapping[int, Mapping[str, frozenset[str]]] = field(default_factory=dict)

    def donor(
        self, donor: Donor, difference: float | None = None, mode: Mode = "push_apart", keep_norm: bool = False
    ) -> DonorText:
        """Return a donor's embedding, amplified to `difference` (relative L2 from the prompt) with `mode` if given.

        Raises RecipeError if the difference cannot be reached, or the donor has more tokens than the model reads.
        """
        note = ""
        if donor.expression is not None:
            from wanscope.edit.expression import parse_expression

            bindings = {name: self._plain(inner) for name, inner in donor.names.items()}
            result = parse_expression(donor.expression).evaluate(bindings)
            embedding_LD, note = result.embedding, result.note
        else:
            embedding_LD = self._plain(donor)
        if len(embedding_LD) > self.text_length:
            raise RecipeError(
                f"the donor has {len(embedding_LD)} tokens", f"the model reads {self.text_length}", "a shorter donor"
            )
        if difference is None:
            return DonorText(embedding_LD, note)
        from wanscope.edit.amplify import amplify

        try:
            moved = amplify(self.main, embedding_LD, difference, mode=mode, keep_norm=keep_norm)
        except RecipeError as error:  # in an edit, the target is the field `difference`
            raise RecipeError(error.what, error.why, error.fix.replace("target: ", "difference: ")) from None
        return DonorText(moved.embedding, " ".join(filter(None, (note, moved.describe()))), moved)

    def _plain(self, donor: Donor) -> Tensor:
        if donor.prompt is not None:
            return self.raw[donor.prompt]
        assert donor.sha256 is not None, "hashes are filled in when a study is expanded"
        return self.stored[donor.sha256]
