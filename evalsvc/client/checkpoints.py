"""Methods of the client that post, upload, list and delete checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from evalsvc.client.images import Images, Prompts, packed
from evalsvc.client.transport import MAX_PAGE, MethodGroup, query_of
from evalsvc.client.uploads import TRANSIENT, UPLOAD_PATIENCE, Patience, Report, opened_upload
from evalsvc.errors import RunBehind, UploadNotFound
from evalsvc.spec import documents


class CheckpointMethods(MethodGroup):
    """Methods that post, upload, list and delete checkpoints."""

    def submit(
        self,
        run: str | None,
        step: int | None,
        uri: str,
        *,
        variant: str | None = None,
        suites: Sequence[str] | None = None,
        model: str | Mapping[str, object] | None = None,
        layout: str | Mapping[str, object] | None = None,
        tokens_seen: int | None = None,
        sha256: str | None = None,
        spool: str = "none",
        priority: int = 0,
        tags: Mapping[str, str] | None = None,
        replace: bool = False,
        patience: float = 0.0,
        upload: bool = False,
        report: Report | None = None,
    ) -> documents.Posted:
        """Post a checkpoint for evaluation. Posting the same checkpoint again changes nothing.

        `uri` is a path or address that the service can read, or an expression over checkpoints of the service, such as
        `lerp(run@0, run@5000, 0.3)`, whose `run` and `step` are by default its first run and that run's last step.

        With `upload`, `uri` is a file or folder of this machine that the service cannot read. The client sends what the
        service does not have, see `upload`. `model` is then required for a file, because no configuration lies next to
        an uploaded file; that of a folder is read from the folder.

        A run whose plan says `when_behind: refuse` refuses posts while its evaluations are behind. The client repeats
        such a post for up to `patience` seconds, at the intervals that the service asks for.

        Raises:
            RunBehind: the run is still behind after `patience` seconds.
        """
        fields = {"run": run, "step": step, "uri": uri, "variant": variant, "suites": suites, "model": model}
        fields |= {"layout": layout, "tokens_seen": tokens_seen, "sha256": sha256, "spool": spool}
        fields |= {"priority": priority, "tags": tags or {}, "replace": replace}
        body = {key: value for key, value in fields.items() if value is not None}
        if upload:
            return self._submit_upload(uri, sha256, body, patience, report)
        return self._post(body, patience)

    def log_images(
        self,
        run: str,
        step: int,
        images: Images,
        prompts: Prompts = None,
        *,
        variant: str | None = None,
        suites: Sequence[str] | None = None,
        tokens_seen: int | None = None,
        tags: Mapping[str, str] | None = None,
        replace: bool = False,
        patience: float = 0.0,
        report: Report | None = None,
    ) -> documents.Posted:
        """Upload images that another program sampled, and post them as a step of a run, see `submit`.

        `images` are a folder, an archive (`.tar`, `.npz`, `.parquet`, `.safetensors`), or a sequence of images of PIL.
        `prompts` are a file of captions, whose ids are the names of the images, or the text of each image; a folder of
        images may hold them as `prompts.jsonl`.
        """
        with packed(images, prompts) as folder:
            return self.submit(
                run,
                step,
                str(folder),
                variant=variant,
                suites=suites,
                tokens_seen=tokens_seen,
                tags=tags,
                replace=replace,
                patience=patience,
                upload=True,
                report=report,
            )

    def upload(
        self, path: str, *, sha256: str | None = None, patience: float = UPLOAD_PATIENCE, report: Report | None = None
    ) -> str:
        """Send a file or folder to the service, or resume an upload that another call or another process began.

        The result is the `uri` of the checkpoint to post, `upload:SHA256`; for a folder, the digest is that of its
        manifest. Give `sha256` of a file if it is known; otherwise the file is read twice. After `patience` seconds
        without progress the upload is given up; the service keeps the bytes that arrived for a day. `report` is called
        with the activity (`reading` or `sending`), the bytes done and all bytes.

        Raises:
            InvalidRequest: the file cannot be read, is empty, or larger than the space for uploads.
            CheckpointChanged: the file changed while it was sent.
            Forbidden: the service takes no uploads.
            StorageFull: the service has no room for the file.
        """
        with opened_upload(self._transport, path) as upload:
            sha256 = upload.announce(sha256, patience, report)
            upload.send(sha256, patience, report)
            return f"upload:{sha256}"

    def checkpoint(self, checkpoint: int) -> documents.Checkpoint:
        """Return a checkpoint; `in_use` says whether its file is still needed."""
        return self._transport.get(documents.Checkpoint, f"/v1/checkpoints/{checkpoint}")

    def checkpoints(
        self,
        run: str | None = None,
        *,
        variant: str | None = None,
        state: str | None = None,
        first: int | None = None,
        last: int | None = None,
        page_size: int = MAX_PAGE,
    ) -> Iterator[documents.ListedCheckpoint]:
        """Yield the current checkpoints by run, step (from `first` to `last`) and variant, in pages of `page_size`.

        `state` keeps the checkpoints that have an evaluation in that state.
        """
        query = query_of(run=run, variant=variant, state=state, to=last, **{"from": first})
        for page in self._transport.pages(documents.Checkpoints, "/v1/checkpoints", query, page_size):
            yield from page.checkpoints

    def delete_checkpoint(self, checkpoint: int, *, confirm: str, cancel: bool = False) -> documents.DeletedCheckpoint:
        """Delete a checkpoint with its evaluations and their results. A deletion cannot be undone.

        `confirm` is the name, RUN@STEP or RUN@STEP:VARIANT. `cancel` cancels evaluations that are queued or running.
        """
        query = query_of(confirm=confirm, cancel=cancel)
        return self._transport.fetch(
            documents.DeletedCheckpoint, "DELETE", f"/v1/checkpoints/{checkpoint}", query=query
        )

    def _post(self, body: Mapping[str, object], patience: float) -> documents.Posted:
        until = time.monotonic() + patience
        while True:
            try:
                return self._transport.fetch(documents.Posted, "POST", "/v1/checkpoints", body)
            except RunBehind as error:
                wait = max(1, error.retry_after or 0)
                if time.monotonic() + wait > until:
                    raise
            time.sleep(wait)

    def _submit_upload(
        self, path: str, sha256: str | None, body: Mapping[str, object], patience: float, report: Report | None
    ) -> documents.Posted:
        with opened_upload(self._transport, path) as upload:
            sha256 = upload.announce(sha256, UPLOAD_PATIENCE, report)
            body = {**body, "uri": f"upload:{sha256}"}
            try:
                # The first post shows every other mistake in the request before the file is sent.
                return self._post(body, patience)
            except UploadNotFound:
                upload.send(sha256, UPLOAD_PATIENCE, report)
            waiting = Patience(UPLOAD_PATIENCE)
            while True:
                try:
                    return self._post(body, patience)
                except UploadNotFound as error:  # another post used an upload that two folders share
                    waiting.wait(error)
                    upload.send(sha256, UPLOAD_PATIENCE, report)
                except TRANSIENT as error:
                    waiting.wait(error)
