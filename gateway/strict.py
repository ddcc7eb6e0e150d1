"""What every part of the configuration is made of: a model that takes no unknown fields and never changes."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A checked part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)
