"""From stored deliveries to frozen, leak-free training tables; and the text rules they share."""
