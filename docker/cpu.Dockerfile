# vit_edge on CPUs, x86-64 or ARM64: ONNX Runtime, no torch. From the top of the repository:
#
#   docker build -f docker/cpu.Dockerfile -t vit-edge:cpu .
#
# docker/README.md says how to run it. Python 3.11 has its pins in constraints/py311.txt.
ARG BASE=python:3.11.13-slim-bookworm

# The wheels: ours and all it needs, pip itself included. Nothing of this stage is in the image.
FROM ${BASE} AS wheels
WORKDIR /src
COPY constraints/py311.txt constraints.txt
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY export export
COPY vit_edge vit_edge
RUN /venv/bin/pip wheel --no-cache-dir --no-build-isolation --constraint constraints.txt \
    --wheel-dir /wheels pip==25.3 ".[cpu]"

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="vit-edge" \
    org.opencontainers.image.description="Vision Transformers on ONNX Runtime, for CPUs" \
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
    --no-cache-dir --no-index --find-links /wheels "vit-edge[cpu]"
COPY docker/healthcheck.py /opt/vit-edge/healthcheck.py
ENV PATH=/opt/vit-edge/bin:$PATH \
    XDG_STATE_HOME=/var/lib/vit-edge \
    XDG_CACHE_HOME=/var/cache/vit-edge
USER 10001:10001
WORKDIR /
# One prediction every five minutes; the first one on a machine hashes the bundle.
HEALTHCHECK --interval=5m --timeout=60s --start-period=60s --retries=2 \
    CMD ["python", "/opt/vit-edge/healthcheck.py"]
ENTRYPOINT ["vit-edge"]
CMD ["doctor"]
