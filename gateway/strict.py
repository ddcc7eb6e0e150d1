"""What every part of the configuration is made of: models that take no unknown fields and never change, and paths.

A relative path is one in the folder of the file that it stands in, wherever the gateway was started; pydantic's
validation context hands that folder down. Without one, as for fields that come from no file, it is the current folder.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FilePath, ValidationInfo

FOLDER = "folder"


class Strict(BaseModel):
    """A checked part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def in_folder_of(file: Path) -> dict[str, Path]:
    """Return the validation context for what `file` holds."""
    return {FOLDER: file.absolute().parent}


def _placed(value: object, info: ValidationInfo) -> object:
    """Return the absolute path that a relative one means; what is no path is left to be refused."""
    folder = (info.context or {}).get(FOLDER) or Path.cwd()
    return folder / value if isinstance(value, str | Path) and str(value) else value


def _has_folder(path: Path) -> Path:
    if not path.parent.is_dir():
        raise ValueError(f"the folder of {path} does not exist")
    return path


AnyPath = Annotated[Path, BeforeValidator(_placed)]
ExistingFile = Annotated[FilePath, BeforeValidator(_placed)]
PathInFolder = Annotated[Path, BeforeValidator(_placed), AfterValidator(_has_folder)]
