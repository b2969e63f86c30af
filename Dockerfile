# What docker-compose.yml runs: the tree as it is, on locked wheels.
FROM python:3.13-slim
WORKDIR /app
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
COPY core core
COPY tasks tasks
COPY examples examples
COPY celeryconfig.py .
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1
RUN printf '#!/bin/sh\nexec python -P -m tasks.cli "$@"\n' > /usr/local/bin/sandkeeper \
 && chmod +x /usr/local/bin/sandkeeper
