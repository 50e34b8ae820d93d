# The service, the scheduler and the client, without torch. Build it from the root of the repository:
#   docker build --file docker/api.Dockerfile --tag evalsvc-api .
ARG BASE_IMAGE=docker.io/library/python:3.12-slim-trixie

FROM ${BASE_IMAGE} AS build
# PostgreSQL; charts of the pages; and stores of remote checkpoints: the service looks at a checkpoint when it is posted.
ARG EXTRAS=postgresql,dashboard,s3,gs,hf
RUN python3 -P -m venv /opt/tools && python3 -P -m venv --without-pip /opt/evalsvc
WORKDIR /src
# The dependencies first and alone: a change to the code does not install them again.
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY evalsvc/__init__.py evalsvc/
RUN mkdir migrations \
    && /opt/tools/bin/pip --python /opt/evalsvc/bin/python install --no-cache-dir \
        --constraint constraints.txt ".[${EXTRAS}]" \
    && /opt/tools/bin/pip --python /opt/evalsvc/bin/python uninstall --yes evalsvc \
    && find /opt/evalsvc -type d -name tests -prune -exec rm -r {} +
ARG REVISION=
COPY migrations migrations
COPY evalsvc evalsvc
# The weights of the bundled runs and of the golden cases are for workers.
RUN rm -r evalsvc/miniature/runs/*/checkpoints evalsvc/verify/golden \
    && echo "${REVISION}" > evalsvc/COMMIT \
    && /opt/tools/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="evalsvc-api" \
      org.opencontainers.image.description="Service, scheduler and client of evalsvc, without torch" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
# A volume gets the owner that its folder has in the image.
RUN groupadd --gid 10001 evalsvc \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin evalsvc \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data /data/spool /data/shared /certificates /credentials \
    && install --directory --owner=10001 --group=10001 /runs
COPY --from=build /opt/evalsvc /opt/evalsvc
RUN --mount=type=bind,from=build,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=build,source=/wheel,target=/wheel \
    /opt/tools/bin/pip --python /opt/evalsvc/bin/python install --no-cache-dir --no-deps --no-index /wheel/*.whl
# Nothing is written outside of /data and /tmp, so the root may be read-only.
ENV PATH=/opt/evalsvc/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    EVALSVC_DATA_DIR=/data \
    EVALSVC_HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
EXPOSE 8321
# Of the service; whoever runs another command of this image gives it another check, or none.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-P", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8321, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["evalsvc"]
CMD ["serve"]
