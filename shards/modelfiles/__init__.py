"""Model files on disk, without torch: folders, the hub, adapters, vocabularies, the output layer's form."""
