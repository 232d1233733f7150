"""Retrieval: BM25, pseudo pairs, the embedding-based retriever, its index, and RQA (A20-A26)."""
