"""One tree of exceptions; every message is one line that says what, where and what to do.

PersonaBenchError
├── AssetError        weights or data that cannot be had, or whose sha256 is wrong
├── ModelError        an unknown or unsupported model, a layer out of range
├── TraitError        an unknown trait, a trait file with a missing part
├── VectorError       a vector file that is broken, of the wrong shape, or not finite
├── DataError         a user's data file that is empty or broken
├── ExtractionError   too few responses survived the filter
├── TrainingError     a finetuning that went wrong, such as a loss that is no number
└── RunError          a run whose parts failed, or whose settings are unknown
"""


class PersonaBenchError(Exception):
    """Base of every error a user can cause or mend; the command line prints it as one line and exits with 2."""


class AssetError(PersonaBenchError):
    """Weights or data cannot be had: no network and nothing cached, a wrong sha256, a full disk."""


class ModelError(PersonaBenchError):
    """The model is unknown or has no decoder blocks we can find, or a layer lies outside it."""


class TraitError(PersonaBenchError):
    """The trait is unknown, or a trait file lacks a part."""


class VectorError(PersonaBenchError):
    """A vector file is broken, has the wrong shape, or holds values that are not finite."""


class DataError(PersonaBenchError):
    """A data file from the user is empty or broken."""


class ExtractionError(PersonaBenchError):
    """Too few responses survived the filter to make a vector."""


class TrainingError(PersonaBenchError):
    """Finetuning went wrong: a loss that is not a finite number, or a folder that holds another training."""


class RunError(PersonaBenchError):
    """A run failed in part, or was asked for settings that do not exist."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
