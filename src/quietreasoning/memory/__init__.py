"""What a model reads beyond its weights: stores of past text, nearest neighbours, compressed caches."""
