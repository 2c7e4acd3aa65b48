"""Errors meant for people: each message is one sentence that says what is wrong and what to do."""


class QuantlibError(Exception):
    """Base of every error that quantlib raises on purpose."""


class ConfigError(QuantlibError, ValueError):
    """A setting is out of range, unknown or contradicts another."""


class DataError(QuantlibError):
    """Images are missing, damaged or could not be fetched."""


class CheckpointError(QuantlibError):
    """Trained weights are missing, damaged or belong to another architecture."""


class UnsupportedOperatorError(QuantlibError):
    """The model holds an operator that quantlib cannot quantize; the message names the node."""


class NotCalibratedError(QuantlibError):
    """A range was asked for before any data had been observed."""


class NonFiniteError(QuantlibError, ValueError):
    """NaN or infinity where finite numbers are needed; the message names the layer or step."""


class TrainingError(QuantlibError):
    """Training cannot go on; the last good state is kept."""


class StudyError(QuantlibError):
    """The study was asked for something it does not have."""
