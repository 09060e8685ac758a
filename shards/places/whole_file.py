"""Fetches one file of a store whole, such as a file of data, into the cache_dir."""

import hashlib

from shards.errors import OptionError
from shards.places.mirror import KEY_LETTERS, Mirror
from shards.places.room import Room
from shards.places.stores import store_of
from shards.places.url import parse_url


def fetch_file(url: str, room: Room) -> Mirror:
    """The mirror with this one file, which stays as long as the mirror lives. Another version has another folder.

    Raises CacheMissing if there is none, OptionError for a URL without a file, TransferFailed.
    """
    place = parse_url(url)
    if not place.prefix:
        raise OptionError(f"{place}: expected the URL of a file, got that of a whole bucket")
    store = store_of(place.parent)
    version, size = store.version(place.name)
    key = hashlib.sha256(f"{place}\0{version}\0{size}".encode()).hexdigest()[:KEY_LETTERS]
    mirror = Mirror(store, room, key, place.name, {place.name: size})
    mirror.hold_all()
    mirror.ensure(place.name)
    return mirror
