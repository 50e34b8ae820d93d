#!/bin/sh
# Make the secrets that docker/compose.yaml reads: the password of the database, and the database's URL with it.
# Those that are there stay.
set -eu
folder=$(dirname "$0")/secrets
if [ -e "$folder" ]; then
    echo "$folder is there; it is left as it is"
    exit 0
fi
password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
# The containers read the files as users of their own; on the host nobody else gets into the folder.
mkdir -m 0700 "$folder.new"
umask 022
printf '%s' "$password" > "$folder.new/database_password"
printf 'postgresql://evalsvc:%s@database/evalsvc' "$password" > "$folder.new/database_url"
mv "$folder.new" "$folder"
echo "made $folder/database_password and $folder/database_url"
