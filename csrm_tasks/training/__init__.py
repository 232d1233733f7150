"""What every training loop needs: exact, resumable checkpoints."""
