"""Train queries translated for languages that are judged and have no train labels (A36, A37)."""
