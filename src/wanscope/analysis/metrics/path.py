"""Metrics of the path, from its Gram matrix (latent_path.py). Lengths are root mean squares per latent value (rms)."""

from __future__ import annotations

import numpy as np

from wanscope.analysis import path_volume
from wanscope.analysis import trajectory as tr
from wanscope.analysis.metric import Row, Subject, mean_of, metric, one, per_state


@metric(
    "path_length",
    title="Path length",
    unit="rms",
    tested=True,
    about="Sum of the velocities: how far the latents move in total.",
)
def path_length(subject: Subject) -> list[Row]:
    return one(tr.path_length(subject.path))


@metric(
    "displacement",
    title="Displacement",
    unit="rms",
    tested=True,
    about="Distance from the noise to the result, |x_S - x_0| / sqrt(D).",
)
def displacement(subject: Subject) -> list[Row]:
    return one(tr.displacement(subject.path))


@metric(
    "linearity",
    title="Linearity",
    unit="1",
    tested=True,
    about="Displacement over path length: 1 for a straight line.",
)
def linearity(subject: Subject) -> list[Row]:
    return one(tr.linearity(subject.path))


@metric(
    "turning",
    title="Mean turning angle",
    unit="degrees",
    tested=True,
    about="Mean angle between consecutive steps, v_k and v_(k+1).",
)
def turning(subject: Subject) -> list[Row]:
    return one(mean_of(tr.turning_angles(subject.path)))


@metric(
    "curvature",
    title="Mean curvature",
    unit="1/rms",
    tested=True,
    about="Mean of 1 / radius of the circle through three consecutive states (Menger 1930).",
)
def curvature(subject: Subject) -> list[Row]:
    return one(mean_of(tr.curvature(subject.path)))


@metric(
    "mean_acceleration",
    title="Mean acceleration",
    unit="rms",
    tested=True,
    about="Mean length of the change from one step to the next, |v_(k+1) - v_k| / sqrt(D).",
)
def mean_acceleration(subject: Subject) -> list[Row]:
    return one(mean_of(tr.acceleration(subject.path)))


@metric(
    "log_volume",
    title="Log-volume",
    unit="nats",
    tested=True,
    about="1/2 sum ln(lambda_i / D), largest r eigenvalues of the centered path's Gram matrix; one r for all takes.",
)
def log_volume(subject: Subject) -> list[Row]:
    return one(path_volume.log_volume(subject.path.spectrum, subject.rank, subject.path.dimension))


@metric(
    "participation_ratio",
    title="Participation ratio",
    unit="axes",
    tested=True,
    about="(sum lambda)^2 / sum lambda^2: the effective number of principal axes.",
)
def participation_ratio(subject: Subject) -> list[Row]:
    return one(path_volume.participation_ratio(subject.path.spectrum))


@metric(
    "mean_frequency",
    title="Mean temporal frequency",
    unit="cycles/step",
    tested=True,
    about="Power-weighted mean frequency of the increments after subtracting their mean.",
)
def mean_frequency(subject: Subject) -> list[Row]:
    return one(tr.mean_frequency(subject.path))


@metric(
    "phase_changes",
    title="Phase changes",
    unit="count",
    tested=True,
    about="Number of change points of the log velocity, by penalized least squares.",
)
def phase_changes(subject: Subject) -> list[Row]:
    return one(len(tr.phase_changes(tr.velocity(subject.path))))


@metric(
    "phase_start",
    title="Where phases begin",
    unit="1",
    about="1 at the first state of every phase of the velocity except the first phase, 0 elsewhere.",
)
def phase_start(subject: Subject) -> list[Row]:
    states = subject.path.states[1:]
    marks = np.zeros(len(states))
    marks[list(tr.phase_changes(tr.velocity(subject.path)))] = 1
    return per_state(marks, states)


@metric("velocity", title="Velocity", unit="rms", about="Length of the step that ends at a state, |v_k| / sqrt(D).")
def velocity(subject: Subject) -> list[Row]:
    return per_state(tr.velocity(subject.path), subject.path.states[1:])


@metric(
    "sigma_speed",
    title="Velocity per noise level",
    unit="rms/sigma",
    about="Velocity over |sigma_k - sigma_(k-1)|, which does not depend on the schedule's step sizes.",
)
def sigma_speed(subject: Subject) -> list[Row]:
    return per_state(tr.sigma_speed(subject.path), subject.path.states[1:])


@metric(
    "acceleration",
    title="Acceleration",
    unit="rms",
    about="Length of the change from one step to the next, |v_(k+1) - v_k| / sqrt(D).",
)
def acceleration(subject: Subject) -> list[Row]:
    return per_state(tr.acceleration(subject.path), subject.path.states[1:-1])


@metric(
    "turning_angle", title="Turning angle", unit="degrees", about="Angle between the steps before and after a state."
)
def turning_angle(subject: Subject) -> list[Row]:
    return per_state(tr.turning_angles(subject.path), subject.path.states[1:-1])


@metric(
    "curvature_at",
    title="Curvature",
    unit="1/rms",
    about="1 / radius of the circle through a state and its neighbors (Menger 1930).",
)
def curvature_at(subject: Subject) -> list[Row]:
    return per_state(tr.curvature(subject.path), subject.path.states[1:-1])


@metric(
    "drift",
    title="Drift from the start",
    unit="rms",
    about="Distance of a state from the noise, |x_k - x_0| / sqrt(D).",
)
def drift(subject: Subject) -> list[Row]:
    return per_state(tr.drift(subject.path), subject.path.states)


@metric(
    "remaining",
    title="Distance to the result",
    unit="rms",
    about="Distance of a state from the last one, |x_S - x_k| / sqrt(D).",
)
def remaining(subject: Subject) -> list[Row]:
    return per_state(tr.remaining(subject.path), subject.path.states)


@metric(
    "alignment",
    title="Alignment with the straight line",
    unit="1",
    about="Cosine between the step that ends at a state, v_k, and the straight line x_S - x_0.",
)
def alignment(subject: Subject) -> list[Row]:
    return per_state(tr.alignment(subject.path), subject.path.states[1:])


@metric(
    "explained",
    title="Share of the path's variance by axis",
    unit="1",
    about="lambda_i / sum lambda, largest first: eigenvalues of the centered path's Gram matrix, the PCA spectrum.",
)
def explained(subject: Subject) -> list[Row]:
    shares = path_volume.explained_variance(subject.path.spectrum)
    return [Row(float(share), None, str(i + 1)) for i, share in enumerate(shares)]


@metric(
    "frequency_power",
    title="Power of the increments by frequency",
    unit="rms^2",
    about="Squared Fourier coefficients of the increments after subtracting their mean; parts are cycles per step.",
)
def frequency_power(subject: Subject) -> list[Row]:
    frequencies, power = tr.frequency_spectrum(subject.path)
    pairs = zip(frequencies, power / subject.path.dimension, strict=True)
    return [Row(float(value), None, f"{frequency:.4f}") for frequency, value in pairs]
