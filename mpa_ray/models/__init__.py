"""What a checkpoint is and needs: its files, its family, its size, its memory."""
