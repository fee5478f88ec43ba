# MLflow on PostgreSQL and S3, with basic authentication. Its settings: infra/deploy/tracking_server.py.
#
#   docker build -f docker/mlflow.Dockerfile -t agft-mlflow:local .
FROM docker.io/library/python:3.11-slim-bookworm

ENV PATH=/opt/agft/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/agft/code \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

RUN useradd --uid 1000 --create-home --shell /usr/sbin/nologin mlflow

COPY constraints.txt /build/
RUN python3 -m venv /opt/agft \
 && pip install --constraint /build/constraints.txt 'mlflow[auth]' 'psycopg[binary]' boto3

COPY infra /opt/agft/code/infra

ARG REVISION=
LABEL org.opencontainers.image.title="agft-study MLflow" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=${REVISION}

USER 1000:1000
WORKDIR /home/mlflow
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
  CMD ["python", "-m", "infra.deploy.health", "http://127.0.0.1:5000/health"]
CMD ["python", "-m", "infra.deploy.tracking_server"]
