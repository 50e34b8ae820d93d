"""Remote checkpoints: in object stores, on the Hugging Face hub, behind http."""
