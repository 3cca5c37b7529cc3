# One image for every role: `make run`'s pipeline (the default), the servers, and a worker. See the end of this file.
# The wheels of requirements.lock bring what they need, so a slim Python is the whole base.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python3 -m venv /opt/venv
COPY requirements-torch.lock requirements.lock requirements-embedded.lock requirements-servers.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/python -m pip install --no-deps -r requirements-torch.lock \
    && /opt/venv/bin/python -m pip install --no-deps --require-hashes \
        -r requirements.lock -r requirements-embedded.lock -r requirements-servers.lock

FROM ${PYTHON_IMAGE} AS pipeline
# Runs apart are git worktrees and DVC experiments; the compiler makes loops beside the products faster. Debian's own of
# this release are the right ones, whichever they are.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=builder /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/minillm \
    DVC_SITE_CACHE_DIR=/home/minillm/.cache/dvc-site \
    DVC_NO_ANALYTICS=1 \
    DO_NOT_TRACK=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_SERVER_EPHEMERAL_ENABLED=false
# Root could write through a link into DVC's cache; a number lets an orchestrator check that this is not root. DVC asks
# for a name, too.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /home/minillm --shell /usr/sbin/nologin minillm
# A new volume takes owner and contents of the directory that it is mounted over, so each one is made here.
WORKDIR /pipeline
RUN mkdir -p /home/minillm/.cache/dvc-site /var/lib/prefect /var/lib/mlflow \
        .dvc .git .servers data metrics models outputs plots reports state \
    && chmod 0700 /home/minillm/.cache/dvc-site /var/lib/prefect /var/lib/mlflow \
    && chown -R 10001:10001 /home/minillm /pipeline /var/lib/prefect /var/lib/mlflow
COPY --chown=10001:10001 . .
USER 10001:10001
# A checkout mounted over /pipeline may belong to another user, and git then refuses to read it. DVC saves no
# experiment for an author without a name.
RUN git config --global --add safe.directory /pipeline \
    && git config --global user.name MiniLLM \
    && git config --global user.email minillm@localhost
# A repository of its own, for worktrees and experiments: .git lies in a volume, and the bundle lets flows/container.py
# bring a new image's commit into it. The fixed date gives equal code an equal commit, on every machine. Raw data stay
# out, as in a checkout that keeps them untracked. dvc.lock is not there yet: a worktree makes its own.
RUN export GIT_AUTHOR_DATE=2026-01-01T00:00:00Z GIT_COMMITTER_DATE=2026-01-01T00:00:00Z \
    && git init --quiet --initial-branch=main \
    && git config minillm.bundle /home/minillm/code.bundle \
    && git add --all -- . ':!data/raw' \
    && git commit --quiet --message "The image's code" \
    && git bundle create --quiet /home/minillm/code.bundle HEAD
# DVC writes dvc.lock beside dvc.yaml. In the volume of .dvc it lasts, and works in a read-only root. DVC takes a link
# to nothing for a broken file, hence an empty one.
RUN printf "schema: '2.0'\n" > .dvc/dvc.lock && ln -s .dvc/dvc.lock dvc.lock

# compose.yaml starts servers and workers, with logins. Roles by hand, all in /pipeline; mount volumes over .dvc, .git,
# state and .servers to keep them:
#   pipeline  docker run IMAGE
#   pages     docker run --network host IMAGE python -m flows.servers
#   worker    docker run -e PREFECT_API_URL=... IMAGE python -m flows.container prefect worker start --pool cpu --with-healthcheck
# A run has no health to ask for: it ends, and its exit code tells. A server's is at /health (MLflow), /api/health (Prefect),
# a worker's at port 8080 /health; whoever starts that role checks it there.
HEALTHCHECK NONE
CMD ["python", "-m", "flows.local"]
