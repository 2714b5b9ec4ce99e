"""Statistics of one latent, accumulated frame by frame: channels, spatial frequencies, coherence, entropy.

Moments are summed in float64. Spatial power comes from single-precision Fourier transforms of each channel of each
frame, minus its mean. Frequencies are in cycles per latent pixel: (0, 0.5] along an axis, up to 0.71 on diagonals.

Entropy is the differential entropy of a latent's values in nats, from a histogram with fixed bins. For large frames it
uses every n-th value. Sources: histogram estimate with the correction of Miller 1955 (as in Paninski 2003, doi
10.1162/089976603321780272); spectrum by radial bands as in van der Schaaf and van Hateren 1996, doi
10.1016/0042-6989(96)00002-8.

Shape suffixes: C channels, T latent frames, h and w latent height and width, R radial bands, P bins, n values per
channel of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

BANDS = 8
HALF = 0.5  # Nyquist frequency along an axis; the last band includes the higher frequencies on the diagonals
FINE = 0.25  # cycles per pixel from which power counts as detail
BIN, REACH = 1 / 32, 32.0  # bins of this width, from -REACH to REACH and one beyond at each end
SAMPLED = 1 << 14  # the histogram uses at least this many values of a frame, if it has them


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of one latent [C, T, h, w].

    mean_C, variance_C: of each channel. correlation_CC: between channels. power_R: mean squared Fourier coefficient per
    radial band (0 for a constant frame; for white noise its variance in every band). detail: share of the power at FINE
    and above. coherence: mean correlation of adjacent frames, NaN for one frame. change: mean squared difference of
    adjacent frames over the sum of their mean squares. entropy: in nats per value. gaussian_gap: entropy of a Gaussian
    with the same variance minus the entropy.
    """

    mean_C: np.ndarray
    variance_C: np.ndarray
    correlation_CC: np.ndarray
    power_R: np.ndarray
    detail: float
    coherence: float
    change: float
    entropy: float
    gaussian_gap: float

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self.mean_C.mean())

    @property
    def variance(self) -> float:
        """Variance of all values about their common mean."""
        return float(self.variance_C.mean() + self.mean_C.var())

    @property
    def correlation(self) -> float:
        """Mean absolute correlation between two channels; NaN for a single channel."""
        channels = len(self.correlation_CC)
        off = ~np.eye(channels, dtype=bool)
        return float(np.abs(self.correlation_CC[off]).mean()) if channels > 1 else float("nan")


def band_edges(bands: int = BANDS) -> np.ndarray:
    """Return the edges of the radial bands in cycles per pixel, [R + 1]; the last band has no upper limit."""
    return np.linspace(0, HALF, bands + 1)


@lru_cache(maxsize=8)
def radial_plan(height: int, width: int, bands: int = BANDS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three flat arrays for the coefficients of a real transform, [h * (w // 2 + 1)].

    They are the band of each (-1 for the mean), its multiplicity in the full transform, and whether it is detail.
    """
    fy_h, fx_w = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    radius = np.hypot(fy_h[:, None], fx_w[None, :])
    band = np.minimum((radius / HALF * bands).astype(int), bands - 1)
    band[0, 0] = -1
    twice = np.full(len(fx_w), 2.0)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    weight = np.broadcast_to(twice, radius.shape)
    return band.ravel(), weight.ravel().copy(), (radius >= FINE).ravel()


class Accumulator:
    """Accumulate the frames of one latent in order. Memory: one frame and small tables."""

    def __init__(self, channels: int, bands: int = BANDS) -> None:
        self.bands = bands
        self._sum_C = np.zeros(channels)
        self._product_CC = np.zeros((channels, channels))
        self._per_pixel: Any = 0.0
        self._frames = self._pixels = 0
        self._coherences: list[float] = []
        self._changes: list[float] = []
        self._before: np.ndarray | None = None
        self._counts_P = np.zeros(round(2 * REACH / BIN) + 2, dtype=np.int64)

    def add(self, frame_Chw: np.ndarray) -> None:
        """Add the next latent frame [C, h, w], float32 or float64."""
        from scipy.fft import rfft2

        frame_Cn = frame_Chw.reshape(len(frame_Chw), -1)
        exact_Cn = frame_Cn.astype(np.float64)
        sum_C = exact_Cn.sum(axis=1)
        self._sum_C += sum_C
        self._product_CC += exact_Cn @ exact_Cn.T
        self._pixels += exact_Cn.shape[1]
        exact_Cn -= (sum_C / exact_Cn.shape[1])[:, None]
        self._compare(exact_Cn)
        spectrum: Any = rfft2(exact_Cn.astype(np.float32).reshape(frame_Chw.shape))
        power = (spectrum.real**2 + spectrum.imag**2).sum(axis=0, dtype=np.float64)
        self._per_pixel = self._per_pixel + power.ravel() / exact_Cn.shape[1]
        self._frames += 1
        self._shape = frame_Chw.shape[1:]
        self._count(frame_Cn.reshape(-1))

    def _compare(self, deviation_Cn: np.ndarray) -> None:
        """Correlate a frame [C, n], minus its channels' means, with the previous one."""
        norm = float(np.einsum("cn,cn->", deviation_Cn, deviation_Cn))
        before = self._before
        if before is not None:
            inner = float(np.einsum("cn,cn->", before, deviation_Cn))
            size = np.sqrt(norm * self._norm)
            self._coherences.append(inner / size if size > 0 else float("nan"))
            total = norm + self._norm
            self._changes.append((total - 2 * inner) / total if total > 0 else float("nan"))
        self._before, self._norm = deviation_Cn, norm

    def _count(self, values: np.ndarray) -> None:
        stride = max(1, values.size // SAMPLED)
        place = np.floor((values[::stride] + np.float32(REACH)) * np.float32(1 / BIN)).astype(np.int64) + 1
        self._counts_P += np.bincount(place.clip(0, len(self._counts_P) - 1), minlength=len(self._counts_P))

    def result(self) -> LatentStatistics:
        """Return the statistics of the frames added so far."""
        n = self._pixels
        mean_C = self._sum_C / n
        covariance_CC = self._product_CC / n - np.outer(mean_C, mean_C)
        variance_C = np.diag(covariance_CC).clip(min=0)
        scale_CC = np.sqrt(np.outer(variance_C, variance_C))
        correlation_CC = np.divide(covariance_CC, scale_CC, out=np.full_like(scale_CC, np.nan), where=scale_CC > 0)
        band, weight, fine = radial_plan(*self._shape, self.bands)
        inside = band >= 0
        power = self._per_pixel * weight
        sums_R = np.bincount(band[inside], power[inside], minlength=self.bands)
        members_R = np.bincount(band[inside], weight[inside], minlength=self.bands) * self._frames * len(mean_C)
        power_R = np.divide(sums_R, members_R, out=np.full(self.bands, np.nan), where=members_R > 0)
        total = power[inside].sum()
        entropy = _entropy(self._counts_P)
        variance = float(variance_C.mean() + mean_C.var())
        gaussian = 0.5 * np.log(2 * np.pi * np.e * variance) if variance > 0 else float("nan")
        return LatentStatistics(
            mean_C,
            variance_C,
            correlation_CC,
            power_R,
            float(power[inside & fine].sum() / total) if total > 0 else float("nan"),
            float(np.mean(self._coherences)) if self._coherences else float("nan"),
            float(np.mean(self._changes)) if self._changes else float("nan"),
            entropy,
            float(gaussian - entropy),
        )


def _entropy(counts_P: np.ndarray) -> float:
    """Return nats per value from counts [P], with Miller's correction for the number of nonempty bins."""
    used = counts_P[counts_P > 0]
    total = used.sum()
    share = used / total
    return float(-(share * np.log(share)).sum() + np.log(BIN) + (len(used) - 1) / (2 * total))


def latent_statistics(latent_CThw: np.ndarray) -> LatentStatistics:
    """Return the statistics of a whole latent [C, T, h, w] in memory."""
    accumulator = Accumulator(len(latent_CThw))
    for t in range(latent_CThw.shape[1]):
        accumulator.add(latent_CThw[:, t])
    return accumulator.result()
