# vit_edge on NVIDIA GPUs of PCs and servers (x86-64): ONNX Runtime with CUDA, no torch. From the
# top of the repository:
#
#   docker build -f docker/cuda.Dockerfile -t vit-edge:cuda .
#
# CUDA 13 and cuDNN 9 come as wheels, only those libraries that ONNX Runtime links: NVIDIA's own
# CUDA images with cuDNN hold more. The host needs a driver of release 580 or newer, and NVIDIA's
# container toolkit; docker/README.md says how to run it.
ARG BASE=python:3.11.13-slim-bookworm

# The wheels: ours and all it needs, pip itself included. Nothing of this stage is in the image.
FROM ${BASE} AS wheels
WORKDIR /src
COPY constraints/py311.txt docker/cuda-constraints.txt ./
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint py311.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY export export
COPY vit_edge vit_edge
RUN /venv/bin/pip wheel --no-cache-dir --no-build-isolation --constraint py311.txt \
    --constraint cuda-constraints.txt --wheel-dir /wheels \
    pip==25.3 ".[gpu]" "onnxruntime-gpu[cuda,cudnn]"

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="vit-edge" \
    org.opencontainers.image.description="Vision Transformers on ONNX Runtime, for NVIDIA GPUs" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${BASE}"
# What is written at run time lies in two folders of the user's: records, and engines of bundles
# that are mounted read-only.
RUN groupadd --gid 10001 vit-edge \
    && useradd --uid 10001 --gid 10001 --no-create-home vit-edge \
    && install --directory --owner vit-edge --group vit-edge \
    /var/lib/vit-edge /var/cache/vit-edge /bundles
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -m venv --without-pip /opt/vit-edge \
    && PYTHONPATH="$(echo /wheels/pip-*.whl)" /opt/vit-edge/bin/python -m pip install \
    --no-cache-dir --no-index --find-links /wheels "vit-edge[gpu]" "onnxruntime-gpu[cuda,cudnn]"
COPY docker/healthcheck.py /opt/vit-edge/healthcheck.py
ENV PATH=/opt/vit-edge/bin:$PATH \
    XDG_STATE_HOME=/var/lib/vit-edge \
    XDG_CACHE_HOME=/var/cache/vit-edge \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VIT_EDGE_NEEDS_GPU=1
USER 10001:10001
WORKDIR /
# Whether the GPU is still there, and one prediction, every five minutes; the first on a machine
# hashes the bundle.
HEALTHCHECK --interval=5m --timeout=60s --start-period=60s --retries=2 \
    CMD ["python", "/opt/vit-edge/healthcheck.py"]
ENTRYPOINT ["vit-edge"]
CMD ["doctor"]
