#!/usr/bin/env bash
# Run by PostgreSQL's image once, on an empty data folder: a role and a database for studies, and others for MLflow.
set -euo pipefail
psql --username "${POSTGRES_USER:-postgres}" --dbname postgres --set ON_ERROR_STOP=1 \
  --set study="$STUDY_DB_PASSWORD" --set mlflow="$MLFLOW_DB_PASSWORD" <<'SQL'
CREATE ROLE agft LOGIN PASSWORD :'study';
CREATE DATABASE agft OWNER agft TEMPLATE template0 ENCODING 'UTF8';
REVOKE ALL ON DATABASE agft FROM PUBLIC;
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE mlflow OWNER mlflow TEMPLATE template0 ENCODING 'UTF8';
REVOKE ALL ON DATABASE mlflow FROM PUBLIC;
SQL
