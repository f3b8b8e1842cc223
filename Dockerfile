# Workers of SpecBeam for Dataflow, and for any runner that starts Beam's containers. See docs/dataflow.md.
#
#   docker build --build-arg DEVICE=tpu --tag IMAGE .          DEVICE: cpu, cuda or tpu
#   docker build --build-arg EXTRAS=gcp,gguf,tasks --tag IMAGE .      with TensorFlow, for TFDS and SeqIO inputs
#
# Packages have the versions of requirements.lock, Python and Beam those of the machine that launches.

# Beam's boot binary, which starts a worker's process. Both versions: as in requirements.lock and at the launch.
FROM apache/beam_python3.11_sdk:2.77.0 AS beam

FROM python:3.11-slim-bookworm
COPY --from=beam /opt/apache/beam /opt/apache/beam

# Everything but this project's own sources, which change more often: the layer is kept while lock and extras are.
WORKDIR /opt/specbeam
COPY pyproject.toml setup.py requirements.lock README.md LICENSE ./
COPY decoding/version.py decoding/
ARG DEVICE=cpu
ARG EXTRAS=gcp,gguf
RUN case "$DEVICE" in \
        cpu) extras="$EXTRAS,compiler" ;; \
        cuda | tpu) extras="$EXTRAS,$DEVICE" ;; \
        *) echo "DEVICE is '$DEVICE'; allowed: cpu, cuda, tpu" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir --no-input --constraint requirements.lock ".[$extras]"

COPY decoding decoding
COPY transforms transforms
COPY pipeline pipeline
COPY specbeam specbeam
COPY configs configs
RUN pip install --no-cache-dir --no-input --no-deps --force-reinstall . \
    && python -c "import pipeline.generate, pipeline.score" \
    && if [ "$DEVICE" = cpu ]; then python -c "from decoding import kernels; assert kernels.available()"; fi

# A worker without its accelerator fails at once, instead of decoding on the processor at the accelerator's price.
# The driver of a GPU is mounted by Dataflow. The boot binary installs nothing and needs no environment of its own.
ENV JAX_PLATFORMS=${DEVICE} \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
ENTRYPOINT ["/opt/apache/beam/boot"]
