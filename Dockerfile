# mpp with the torch of this image's platform. For CPUs alone:  docker build --build-arg BACKEND=cpu -t mpp .
#
#   docker run --rm --gpus all --shm-size 8g -v "$PWD":/data mpp pretrain mean_color
#
# Runs are written to /data/runs. --shm-size: loader processes hand their batches over in shared memory.
FROM python:3.12-slim
ARG BACKEND=auto
RUN pip install --no-cache-dir uv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY docs/wheel_readme.py docs/wheel_readme.py
COPY mpp mpp
COPY recipes recipes
RUN uv pip install --system --no-cache --torch-backend "$BACKEND" ".[study]"
WORKDIR /data
ENTRYPOINT ["mpp"]
CMD ["--help"]
