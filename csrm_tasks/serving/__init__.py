"""The reference scoring service: follows the routing document, answers, logs (docs/SERVING.md)."""
