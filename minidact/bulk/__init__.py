"""Any amount of text, on one machine or many: `python -m minidact.bulk --data 'DIR/*.jsonl' ..`."""
