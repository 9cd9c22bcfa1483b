# For GPU machines with the NVIDIA container toolkit. Written after docs/INSTALL.md; not yet tried.
#   docker build -t mpcl .
#   docker run --gpus all --shm-size 8g -v /path/to/datasets:/mpcl/data -v $PWD/output:/mpcl/output \
#     mpcl tools/train_net.py --config-file projects/MPCL/configs/mic_gauss.yaml
# torch of the package index brings its CUDA along; the machine needs a driver for it.
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /mpcl
COPY . .
RUN make setup
ENV PATH=/mpcl/.venv/bin:$PATH DETECTRON2_DATASETS=/mpcl/data
ENTRYPOINT ["python"]
CMD ["tools/doctor.py"]
