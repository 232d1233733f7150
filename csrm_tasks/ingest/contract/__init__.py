"""What a delivery must look like: columns, reasons for quarantine, identity of rows."""
