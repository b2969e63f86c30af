# What docker-compose.yml and deploy/helm run: the tree as it is, on locked wheels, with the clients
# of every provider and of PostgreSQL. Pin the base by its digest in your own builds: a tag moves.
ARG BASE=python:3.13-slim
FROM ${BASE}
WORKDIR /app
COPY requirements-image.lock .
RUN pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements-image.lock
COPY core core
COPY tasks tasks
COPY examples examples
COPY celeryconfig.py .
# Nothing of it is written when it runs: the root may be read-only, with a tmpfs at /tmp. The folder is
# the `local` provider's, which a volume begins as: with this owner.
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN python -m compileall -q core tasks examples celeryconfig.py \
 && printf '#!/bin/sh\nexec python -P -m tasks.cli "$@"\n' > /usr/local/bin/sandkeeper \
 && chmod 755 /usr/local/bin/sandkeeper \
 && install -d -o 10001 -g 10001 -m 700 /var/lib/sandkeeper
# By number: an orchestrator that refuses root cannot look a name up. No HEALTHCHECK: this is also a
# worker and a beat, which have no port; whoever runs it as a server asks /healthz.
USER 10001:10001
