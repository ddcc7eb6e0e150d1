"""Heals an instance whose model process has died, through Triton's repository API.

Knows which models to unload and in which order. Does not know who decides that, or whether the instance then lives.

Unloading the ensemble and its models and loading the ensemble again starts their processes anew in about 2 s;
loading a dead model again does nothing (Triton 2.51).
"""

import http.client

MODELS = ("llm", "llm_engine", "preprocessing", "postprocessing")
UNLOAD_SECONDS = 5.0
LOAD_SECONDS = 120.0


def heal(url: str) -> str | None:
    """Unload and load the models of the instance with this HTTP address; return why it did not work, or None."""
    for model in MODELS:
        if trouble := _ask(url, f"/v2/repository/models/{model}/unload", UNLOAD_SECONDS):
            return f"{model} cannot be unloaded: {trouble}"
    if trouble := _ask(url, "/v2/repository/models/llm/load", LOAD_SECONDS):
        return f"llm cannot be loaded: {trouble}"
    return None


def _ask(url: str, path: str, timeout: float) -> str | None:
    connection = http.client.HTTPConnection(url, timeout=timeout)
    try:
        connection.request("POST", path, body=b"{}")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        return None if answer.status == 200 else text[:200]
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()
