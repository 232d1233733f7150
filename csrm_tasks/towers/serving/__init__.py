"""Twin towers as they serve: tokens, ONNX runtime, embedding. No torch in here."""
