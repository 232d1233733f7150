"""Peers that cannot live in our environment: each in a process with packages of its own."""
