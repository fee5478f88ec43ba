"""Models as other libraries load them: transformers, timm, ONNX."""
