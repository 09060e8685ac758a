"""Where files lie: a folder of this machine, or an object store or hub repository, named by a URL."""
