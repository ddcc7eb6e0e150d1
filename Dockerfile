# Two images of one system: `serve`, a tritonserver with the engine and a model, and `gateway`, the front of many of them.
#
#   docker build --target serve -t scalellm-serve .
#   docker build --target gateway -t scalellm-gateway .
#   docker network create scalellm
#   docker run --network scalellm --name serve --gpus all --shm-size=1g scalellm-serve
#   docker run --network scalellm -p 8001:8001 -p 8080:8080 scalellm-gateway
#
# --shm-size=1g: the models' processes talk through /dev/shm, for which Docker's default of 64 MB is too small.
# Another model: mount its folder and name it, -v /models/mine:/model -e SCALELLM_MODEL=/model.
# More instances: give the gateway one --instance HOST:GRPC_PORT,HOST:METRICS_PORT for each.

ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.07-py3

FROM ${TRITON_IMAGE} AS serve
WORKDIR /opt/scalellm
# The image's Python is the one that Triton's stubs load, so packages go beside it and not into an environment.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 NUMBA_CACHE_DIR=/tmp/numba
RUN python3 -m pip install --no-cache-dir "torch>=2.6,<3"
COPY pyproject.toml README.md LICENSE ./
COPY kernels ./kernels
COPY engine ./engine
COPY gateway ./gateway
COPY scripts ./scripts
RUN python3 -m pip install --no-cache-dir --editable .
COPY model_repository ./model_repository
COPY demo_model ./demo_model
USER 1000:1000
EXPOSE 8000 8001 8002
ENTRYPOINT ["tritonserver", "--model-repository=/opt/scalellm/model_repository", "--model-control-mode=explicit", "--load-model=*", "--disable-auto-complete-config", "--grpc-header-forward-pattern=(?i)user-agent", "--backend-config=python,stub-timeout-seconds=600"]

FROM python:3.11-slim AS gateway
WORKDIR /opt/scalellm
RUN python3 -m pip install --no-cache-dir "h11>=0.14" "hpack>=4.1" "isal>=1.7" "prometheus-client>=0.21" "pydantic>=2.9" "pyyaml>=6" "regex>=2024.9" "starlette>=0.40" "typer>=0.15" "uvicorn>=0.32" "uvloop>=0.21"
COPY gateway ./gateway
USER 1000:1000
EXPOSE 8001 8080
HEALTHCHECK CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["python3", "-m", "gateway"]
CMD ["--grpc-address", "0.0.0.0:8001", "--http-address", "0.0.0.0:8080", "--instance", "serve:8001,serve:8002"]
