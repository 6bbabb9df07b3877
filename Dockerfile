# The server on Ray, and everything else of Keyhole: docker build -t keyhole .
# With a GPU: --build-arg RAY=rayproject/ray:2.60.0-py311-gpu
ARG RAY=rayproject/ray:2.60.0-py311-cpu
FROM ${RAY}

# The image's user is `ray`, uid 1000, and stays so. A folder that WORKDIR makes would be root's.
RUN mkdir -p /home/ray/keyhole /home/ray/models
WORKDIR /home/ray/keyhole
COPY --chown=1000:100 requirements.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir --requirement requirements.txt
COPY --chown=1000:100 engine engine
COPY --chown=1000:100 keyhole keyhole
COPY --chown=1000:100 miniature miniature
COPY --chown=1000:100 serve serve
COPY --chown=1000:100 tuning tuning
COPY --chown=1000:100 bench bench
RUN pip install --no-cache-dir --no-deps .

# Read when Ray starts, on every node. docs/serving.md says what they do.
ENV RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_HAPROXY_RETRY_ON="conn-failure empty-response" \
    RAY_SERVE_HAPROXY_TUNE_BUFSIZE=131072

# Weights that open_clip downloads: kept when the container goes.
ENV HF_HOME=/home/ray/models
VOLUME /home/ray/models

USER 1000
WORKDIR /home/ray
# Alone on a machine: docker run --shm-size=1g -p 127.0.0.1:8000:8000 -e KEYHOLE_API_KEYS \
#   -v $PWD/runs:/runs:ro -v keyhole-models:/home/ray/models keyhole
# On Kubernetes KubeRay starts Ray instead: deploy/rayservice.yaml.
CMD ["keyhole", "serve", "--watch", "/runs", "--host", "0.0.0.0", "--port", "8000"]
