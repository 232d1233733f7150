"""From files as a market lands them to stored rows: every row stored, quarantined, or known."""
