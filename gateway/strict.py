"""What every part of the configuration is made of: models that take no unknown fields and never change, and paths.

A relative path is one in the folder of the file that it stands in, wherever the gateway was started; pydantic's
validation context hands that folder down. Without one, as for fields that come from no file, it is the current folder.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FilePath,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)

FOLDER = "folder"


class Strict(BaseModel):
    """A checked part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    reads_files: ClassVar[tuple[str, ...]] = ()  # fields that name files whose contents count


def in_folder_of(file: Path) -> dict[str, Path]:
    """Return the validation context for what `file` holds."""
    return {FOLDER: file.absolute().parent}


def files_read_by(part: Any) -> Iterator[Path]:
    """Yield the files whose contents belong to a part of the configuration, in `reads_files` of it and its parts."""
    if isinstance(part, Strict):
        yield from (path for name in part.reads_files if (path := getattr(part, name)) is not None)
        for name in type(part).model_fields:
            yield from files_read_by(getattr(part, name))
    elif isinstance(part, tuple):
        for item in part:
            yield from files_read_by(item)


class OfFiles(Strict):
    """A part that is another one when the contents of the files that it names are others."""

    _digest: bytes = PrivateAttr(default=b"")

    @model_validator(mode="after")
    def _read(self) -> Self:
        try:
            self._digest = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files_read_by(self))
        except OSError as error:
            raise ValueError(str(error)) from error
        return self


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
