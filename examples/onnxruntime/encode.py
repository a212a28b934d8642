"""A bundle of --ort-ops with ONNX Runtime alone: python encode.py BUNDLE. Nothing of tempme-export is installed."""

import sys

import numpy as np
import onnxruntime

bundle = sys.argv[1]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(f"{bundle}/libtempme_ort.so")
session = onnxruntime.InferenceSession(f"{bundle}/video.plugin.onnx", options, providers=["CPUExecutionProvider"])
frames = np.zeros([axis if isinstance(axis, int) else 1 for axis in session.get_inputs()[0].shape], np.float32)
(embedding,) = session.run(["video_embedding"], {"frames": frames})
print(*embedding[0, :4])
