# The quick report in a container:
#   docker build -t medlib .                  (on a machine without a GPU, add
#                                              --build-arg TORCH_INDEX=<address of PyTorch's CPU index>)
#   docker run --rm -v "$PWD/runs:/audit/runs" medlib
#   docker run --rm -v "$PWD/runs:/audit/runs" medlib make test
# To keep the files in runs/ yours, add: --user "$(id -u):$(id -g)"
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /audit
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 \
    HOME=/tmp

# The packages change less often than the code: this layer is kept while these files stay the same.
COPY Makefile pyproject.toml requirements.lock ./
COPY medlib/__init__.py medlib/__init__.py
RUN make .venv/.installed TORCH_INDEX="$TORCH_INDEX" LOCK=requirements.lock

COPY . .
# Without this, make would see a pyproject.toml newer than the installation. Any user may write results.
RUN touch .venv/.installed \
    && mkdir -p runs reports data/suites data/core24/images docs/figures \
    && chmod -R a+rwX runs reports data docs notebooks README.md

CMD ["make", "report"]
