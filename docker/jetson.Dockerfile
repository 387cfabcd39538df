# vit_edge on a Jetson: TensorRT, ONNX Runtime on the CPU, no torch. On the Jetson, or on any ARM64
# machine, from the top of the repository; JetPack 6 (TensorRT 10.3, Python 3.10):
#
#   docker build -f docker/jetson.Dockerfile -t vit-edge:jetson .
#
# JetPack 7 (Thor; Python 3.12), where NVIDIA's general images for ARM64 servers run:
#
#   docker build -f docker/jetson.Dockerfile -t vit-edge:jetson7 --build-arg CONSTRAINTS=py312.txt \
#       --build-arg BUILDER=python:3.12.11-slim-bookworm \
#       --build-arg BASE=nvcr.io/nvidia/tensorrt:25.08-py3 .
#
# TensorRT and CUDA are the base image's, the driver is the host's: --runtime nvidia.
ARG BASE=nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime
ARG BUILDER=python:3.10.18-slim-bookworm

# The wheels: ours and all it needs, pip itself included. Nothing of this stage is in the image.
FROM ${BUILDER} AS wheels
ARG CONSTRAINTS=py310.txt
WORKDIR /src
COPY constraints constraints
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint "constraints/${CONSTRAINTS}" hatchling
COPY pyproject.toml README.md LICENSE ./
COPY export export
COPY vit_edge vit_edge
RUN /venv/bin/pip wheel --no-cache-dir --no-build-isolation \
    --constraint "constraints/${CONSTRAINTS}" \
    --wheel-dir /wheels pip==25.3 ".[cpu]"

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="vit-edge" \
    org.opencontainers.image.description="Vision Transformers on TensorRT, for Jetson" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${BASE}"
# What is written at run time lies in two folders of the user's: records, and engines of bundles
# that are mounted read-only.
RUN groupadd --gid 10001 vit-edge \
    && useradd --uid 10001 --gid 10001 --no-create-home vit-edge \
    && install --directory --owner vit-edge --group vit-edge \
    /var/lib/vit-edge /var/cache/vit-edge /bundles
# The environment sees the base image's TensorRT. That is looked for only: importing it
# needs the host's driver. pip refuses wheels for another Python than the base image's.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -m venv --system-site-packages --without-pip /opt/vit-edge \
    && PYTHONPATH="$(echo /wheels/pip-*.whl)" /opt/vit-edge/bin/python -m pip install \
    --no-cache-dir --no-index --find-links /wheels "vit-edge[cpu]" \
    && /opt/vit-edge/bin/python -c \
    "from importlib.util import find_spec; assert find_spec('tensorrt'), 'no TensorRT in the base'"
COPY docker/healthcheck.py /opt/vit-edge/healthcheck.py
ENV PATH=/opt/vit-edge/bin:$PATH \
    XDG_STATE_HOME=/var/lib/vit-edge \
    XDG_CACHE_HOME=/var/cache/vit-edge \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VIT_EDGE_NEEDS_GPU=1
# --group-add video on the command line where the board's device files ask for it.
USER 10001:10001
WORKDIR /
# Whether the GPU is still there, and one prediction, every five minutes; the first on a machine
# hashes the bundle.
HEALTHCHECK --interval=5m --timeout=60s --start-period=60s --retries=2 \
    CMD ["python", "/opt/vit-edge/healthcheck.py"]
ENTRYPOINT ["vit-edge"]
CMD ["doctor"]
