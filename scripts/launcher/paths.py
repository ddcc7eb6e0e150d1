"""Where the project keeps things.

Knows folders and the names of environment variables. Does not create, read or run anything.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STATE_DIR = ROOT / ".serve"
LOG_DIR = STATE_DIR / "logs"
MODEL_REPOSITORY = ROOT / "model_repository"
DEFAULT_MODEL = ROOT / "demo_model"
MODEL_ENV = "SCALELLM_MODEL"
TRITONSERVER_ENV = "SCALELLM_TRITONSERVER"
TAG_ENV = "SCALELLM_LAUNCH_TAG"
