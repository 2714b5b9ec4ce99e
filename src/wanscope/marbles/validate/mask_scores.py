"""Scores of how well maps of a word agree with masks of the object that it names.

Maps and masks are on the model's token grid. The mask is the share of each token that the object covers in the pixel
frames of a latent frame; a token belongs to the object where it covers at least `COVERED` of it.

- IoU: intersection over union of the tokens at or above a threshold with those of the object. Maps are divided by their
  largest value first; one threshold for all clips, the best on one half of them, is scored on the other half.
- average precision: the sum over the ranking of (recall gained) x precision, which needs no threshold. Its chance level
  is the share of tokens that belong to the object.
- pointing: how often the largest value of a frame lies on the object (the pointing game, Zhang et al. 2016,
  arXiv 1608.00507).
- path: the correlation of the map's centers with the true centers over the frames of all clips, averaged over x and y.

Shape suffixes: N clips, V settings (a measure, word, step and block), P thresholds, T latent frames, Y and X tokens,
F pixel frames, H and W pixels.
"""

from __future__ import annotations

import numpy as np

from wanscope.analysis.attention import centers

COVERED = 0.25
THRESHOLDS = np.arange(0.05, 1.0, 0.05)


def token_masks(masks_FHW: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Return the covered share of each token, float64 [T, Y, X].

    The first latent frame is pixel frame 0, every other one is four pixel frames. Raises ValueError where the masks do
    not fit the grid.
    """
    T, Y, X = grid
    F, H, W = masks_FHW.shape
    if F != 4 * (T - 1) + 1 or H % Y or W % X:
        raise ValueError(f"masks {masks_FHW.shape} do not fit a grid of {grid}")
    share_FYX = np.asarray(masks_FHW, np.float64).reshape(F, Y, H // Y, X, W // X).mean((2, 4))
    return np.concatenate([share_FYX[:1], share_FYX[1:].reshape(T - 1, 4, Y, X).mean(1)])


def token_centers(path_F2: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the center in each latent frame as fractions of the frame, float64 [T, 2].

    path_F2: centers (x, y) in pixels; NaN is ignored in means.
    """
    scaled_F2 = np.asarray(path_F2, np.float64) / (width, height)
    rest_T42 = scaled_F2[1:].reshape(-1, 4, 2)
    with np.errstate(invalid="ignore"):
        count = np.isfinite(rest_T42).sum(1)
        mean_T2 = np.where(count > 0, np.nansum(rest_T42, 1) / np.maximum(count, 1), np.nan)
    return np.concatenate([scaled_F2[:1], mean_T2])


def overlaps(maps_VTYX: np.ndarray, share_TYX: np.ndarray) -> np.ndarray:
    """Return the IoU of one clip's maps at every threshold, float64 [V, P]."""
    mask_n = (share_TYX >= COVERED).ravel()
    flat_Vn = maps_VTYX.reshape(len(maps_VTYX), -1)
    top_V = flat_Vn.max(1, keepdims=True)
    scaled_Vn = np.divide(flat_Vn, top_V, out=np.zeros_like(flat_Vn, dtype=np.float64), where=top_V > 0)
    out = np.empty((len(flat_Vn), len(THRESHOLDS)))
    for i, threshold in enumerate(THRESHOLDS):
        chosen_Vn = scaled_Vn >= threshold
        union_V = (chosen_Vn | mask_n).sum(1)
        out[:, i] = (chosen_Vn & mask_n).sum(1) / np.maximum(union_V, 1)
    return out


def average_precision(maps_VTYX: np.ndarray, share_TYX: np.ndarray) -> np.ndarray:
    """Return the average precision of one clip's maps, float64 [V]; NaN for a clip without the object.

    Equal values are one step of the ranking.
    """
    mask_n = (share_TYX >= COVERED).ravel()
    positives = int(mask_n.sum())
    flat_Vn = maps_VTYX.reshape(len(maps_VTYX), -1)
    if positives == 0:
        return np.full(len(flat_Vn), np.nan)
    order_Vn = np.argsort(-flat_Vn, axis=1, kind="stable")
    ranked_Vn = np.take_along_axis(flat_Vn, order_Vn, 1)
    hits_Vn = np.cumsum(mask_n[order_Vn], 1)
    precision_Vn = hits_Vn / np.arange(1, flat_Vn.shape[1] + 1)
    last_Vn = np.ones(ranked_Vn.shape, bool)  # the last one of each run of equal values
    last_Vn[:, :-1] = ranked_Vn[:, :-1] != ranked_Vn[:, 1:]
    out = np.empty(len(flat_Vn))
    for i in range(len(flat_Vn)):
        recall = hits_Vn[i, last_Vn[i]] / positives
        out[i] = float((np.diff(recall, prepend=0.0) * precision_Vn[i, last_Vn[i]]).sum())
    return out


def pointing(maps_VTYX: np.ndarray, share_TYX: np.ndarray) -> np.ndarray:
    """Return the share of frames whose largest value lies on the object, float64 [V], among frames that show it."""
    mask_TYX = share_TYX >= COVERED
    shown_T = mask_TYX.any((1, 2))
    if not shown_T.any():
        return np.full(len(maps_VTYX), np.nan)
    peak_VT = maps_VTYX.reshape(*maps_VTYX.shape[:2], -1).argmax(-1)
    hit_VT = np.take_along_axis(mask_TYX.reshape(1, len(mask_TYX), -1), peak_VT[..., None], -1)[..., 0]
    return hit_VT[:, shown_T].mean(1)


def path_correlation(maps_NTYX: np.ndarray, centers_NT2: np.ndarray) -> float:
    """Return Pearson's r of the maps' centers with the true ones over all clips and frames, averaged over x and y."""
    found_NT2 = centers(maps_NTYX)
    known_NT = np.isfinite(found_NT2).all(-1) & np.isfinite(centers_NT2).all(-1)
    values = []
    for axis in range(2):
        a, b = found_NT2[known_NT][:, axis], centers_NT2[known_NT][:, axis]
        if len(a) < 3 or a.std() == 0 or b.std() == 0:
            return float("nan")
        values.append(float(np.corrcoef(a, b)[0, 1]))
    return float(np.mean(values))
