# A stand-in for PostgreSQL's official image where no image registry can be reached: Debian's PostgreSQL, with the same
# variables, data folder and scripts of the first start.
FROM docker.io/library/python:3.11-slim-bookworm
RUN apt-get update \
 && apt-get install --yes --no-install-recommends postgresql \
 && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* \
 && install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data
COPY postgres-entry /usr/local/bin/postgres-entry
USER postgres
VOLUME /var/lib/postgresql/data
CMD ["postgres-entry"]
