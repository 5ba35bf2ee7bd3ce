# An image with the environment that tools/setup_env.sh makes, and the project in it:
#
#   docker build --tag mmpelk .                            # for CPUs
#   docker build --tag mmpelk --build-arg DEVICE=cuda .    # for NVIDIA GPUs
#
# docs/getting_started.md says how to train in it.
ARG DEVICE=cpu

FROM debian:12-slim AS base-cpu

# The toolkit of the CUDA that torch is built for; Ubuntu's Python is 3.12.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS base-cuda
# A build sees no GPU. mmcv's operators are compiled for these: A100, A10 and RTX 30, L4 and RTX 40, H100, B200.
ENV FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0+PTX"

# hadolint ignore=DL3006
FROM base-${DEVICE}
# What tools/setup_env.sh asks of a machine. The distribution's versions are those that it was tried with.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends ca-certificates g++ git make python3 python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /opt/mmpelk
COPY . .
# base, det or test: `make setup`, `make setup-det`, `make setup-test`
ARG STAGE=det
RUN PIP_NO_CACHE_DIR=1 tools/setup_env.sh "$STAGE" || { tail -n 60 .venv/setup.log; exit 1; }
ENV PATH=/opt/mmpelk/.venv/bin:$PATH
CMD ["python", "-m", "mmpelk", "doctor"]
