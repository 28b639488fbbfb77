"""Every SQL statement of the store. Columns stand in the order in which ``codec`` makes and reads rows."""

from __future__ import annotations

from typing import Final

HEAD: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'reading'"
"""AUTOINCREMENT's own count: it stands even when the newest readings were pruned."""

EPOCH: Final = "SELECT epoch FROM store"

CARS: Final = """
    SELECT vehicle.id, slug, vehicle.name, brand, enrolled_ms, withdrawn_ms,
        renewed_ms, invited, former_slugs, subscription,
        application.name, connection_id, vehicle_ref, user_ref, make, model, year, powertrain, permissions,
        reading_seq,
        fetched_ms, origin, measured_ms, soc, range_km, capacity_kwh, charge_state, charging, plugged_in,
        charge_limit, charge_power_kw, time_to_full_s, odometer_km, times,
        due_ms, reason, polled_ms, answered_ms, outcome, failures, activity, calls_per_poll, pushed_ms,
        gain, trouble_outcome, trouble_code, trouble_detail, trouble_since_ms, learned
    FROM vehicle JOIN application ON application.id = application_id JOIN latest ON vehicle_id = vehicle.id
    ORDER BY vehicle.id"""

APPLICATION: Final = "SELECT id FROM application WHERE name = ?"

NEW_APPLICATION: Final = "INSERT INTO application (name) VALUES (?) RETURNING id"

ENROL: Final = """
    INSERT INTO vehicle (slug, name, brand, enrolled_ms, invited, application_id,
        connection_id, vehicle_ref, user_ref, make, model, year, powertrain, permissions)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"""

FORMERLY: Final = """
    SELECT 1 FROM vehicle, json_each(former_slugs)
    WHERE former_slugs IS NOT NULL AND value = ? AND vehicle.id <> ?"""
"""Whether a slug once was that of another vehicle than this one."""

FIRST_SCHEDULE: Final = """
    INSERT INTO latest (vehicle_id,
        due_ms, reason, polled_ms, answered_ms, outcome, failures, activity, calls_per_poll, pushed_ms,
        gain)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

UPDATE_VEHICLE: Final = """
    UPDATE vehicle SET (slug, name, withdrawn_ms, renewed_ms, invited, former_slugs, subscription,
        application_id, connection_id, vehicle_ref, user_ref, make, model, year, powertrain, permissions)
        = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
    WHERE id = ?1 AND (slug, name, withdrawn_ms, renewed_ms, invited, former_slugs, subscription,
        application_id, connection_id, vehicle_ref, user_ref, make, model, year, powertrain, permissions)
        IS NOT (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)"""
"""Writes nothing where nothing changed: most updates are of the schedule alone."""

UPDATE_LATEST: Final = """
    UPDATE latest SET due_ms = ?, reason = ?, polled_ms = ?, answered_ms = ?, outcome = ?, failures = ?,
        activity = ?, calls_per_poll = ?, pushed_ms = ?, gain = ?,
        trouble_outcome = ?, trouble_code = ?, trouble_detail = ?, trouble_since_ms = ?, learned = ?
    WHERE vehicle_id = ?"""

JOURNAL: Final = """
    INSERT INTO reading (vehicle_id,
        fetched_ms, origin, measured_ms, soc, range_km, capacity_kwh, charge_state, charging, plugged_in,
        charge_limit, charge_power_kw, time_to_full_s, odometer_km, times)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

RECORD: Final = """
    UPDATE latest SET fetched_ms = ?, origin = ?, measured_ms = ?,
        soc = ?, range_km = ?, capacity_kwh = ?, charge_state = ?, charging = ?, plugged_in = ?,
        charge_limit = ?, charge_power_kw = ?, time_to_full_s = ?, odometer_km = ?, times = ?,
        due_ms = ?, reason = ?, polled_ms = ?, answered_ms = ?, outcome = ?, failures = ?,
        activity = ?, calls_per_poll = ?, pushed_ms = ?, gain = ?,
        trouble_outcome = ?, trouble_code = ?, trouble_detail = ?, trouble_since_ms = ?, learned = ?,
        reading_seq = coalesce(?, reading_seq)
    WHERE vehicle_id = ? RETURNING reading_seq"""

REJECT: Final = """
    INSERT INTO rejected (vehicle_id, signal, raw, reason, measured_ms, fetched_ms)
    VALUES (?, ?, ?, ?, ?, ?)"""

FORGET_REJECTED: Final = """
    DELETE FROM rejected WHERE vehicle_id = ?1
        AND id <= (SELECT id FROM rejected WHERE vehicle_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)"""

REJECTIONS: Final = """
    SELECT signal, raw, reason, measured_ms, fetched_ms FROM rejected WHERE vehicle_id = ? ORDER BY id DESC"""

KEEP_EXCERPT: Final = """
    INSERT INTO excerpt (vehicle_id, excerpt) VALUES (?, ?)
    ON CONFLICT (vehicle_id) DO UPDATE SET excerpt = excluded.excerpt"""

EXCERPT: Final = "SELECT excerpt FROM excerpt WHERE vehicle_id = ?"

SPEND_BUCKET: Final = """
    INSERT INTO application (name, bucket_level, bucket_ms) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET bucket_level = excluded.bucket_level, bucket_ms = excluded.bucket_ms
    RETURNING id"""

SPEND: Final = """
    INSERT INTO ledger (application_id, window_ms, vehicle_id, calls) VALUES (?, ?, ?, 1)
    ON CONFLICT DO UPDATE SET calls = calls + 1"""

FALL_DUE: Final = "UPDATE latest SET due_ms = ?, polled_ms = ? WHERE vehicle_id = ?"

LORE: Final = """
    SELECT lore FROM lore JOIN application ON application.id = application_id WHERE name = ?"""

KEEP_LORE: Final = """
    INSERT INTO lore (application_id, lore) VALUES (?, ?)
    ON CONFLICT (application_id) DO UPDATE SET lore = excluded.lore"""

CORRECT: Final = """
    INSERT INTO ledger (application_id, window_ms, vehicle_id, calls) VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET calls = excluded.calls"""

BUCKET: Final = """
    SELECT bucket_level, bucket_ms FROM application WHERE name = ? AND bucket_level IS NOT NULL"""

SPENT: Final = """
    SELECT vehicle_id, calls FROM ledger JOIN application ON application.id = application_id
    WHERE name = ? AND window_ms = ?"""

_READING: Final = """
    SELECT seq, vehicle_id, fetched_ms, origin, measured_ms, soc, range_km, capacity_kwh, charge_state,
        charging, plugged_in, charge_limit, charge_power_kw, time_to_full_s, odometer_km, times
    FROM reading """

_AT_POSITIONS: Final = "WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq"

READINGS: Final = _READING + _AT_POSITIONS
"""At the positions in a JSON array."""

HISTORY: Final = (
    _READING
    + "WHERE vehicle_id = ? AND measured_ms >= ? AND measured_ms < ? ORDER BY measured_ms, seq LIMIT ?"
)

CURSOR: Final = "SELECT seq FROM cursor WHERE sink = ?"

MOVE_CURSOR: Final = """
    INSERT INTO cursor (sink, seq) VALUES (?, ?)
    ON CONFLICT (sink) DO UPDATE SET seq = excluded.seq WHERE excluded.seq > seq"""

TOLD: Final = """
    INSERT INTO told (sink, vehicle_id, seq)
    SELECT ?1, ?2, ?3 WHERE ?3 > (SELECT seq FROM cursor WHERE sink = ?1)
    ON CONFLICT (sink, vehicle_id) DO UPDATE SET seq = excluded.seq WHERE excluded.seq > seq"""

OVERTAKEN: Final = """
    DELETE FROM told WHERE sink = ?1 AND seq <= (SELECT seq FROM cursor WHERE sink = ?1)"""

WALK: Final = """
    SELECT max(?2, coalesce((SELECT seq FROM cursor WHERE sink = ?1), 0)),
        coalesce((SELECT max(seq) FROM reading), 0)"""
"""Between which positions a sink may be owed readings."""

OWED: Final = """
    SELECT reading.seq, reading.vehicle_id FROM reading
        LEFT JOIN told ON told.sink = ?1 AND told.vehicle_id = reading.vehicle_id
    WHERE reading.seq >= ?2 AND reading.seq <= ?3 AND (told.seq IS NULL OR told.seq < reading.seq)
    ORDER BY reading.seq LIMIT ?4"""

FIRST: Final = "SELECT min(seq) FROM reading"

NEXT: Final = "SELECT min(seq) FROM reading WHERE seq > ? AND seq <= ?"

LAST: Final = "SELECT coalesce(max(seq), 0) FROM reading"

FETCHED_UP_TO: Final = """
    SELECT seq, fetched_ms FROM reading WHERE seq > ? AND seq <= ? ORDER BY seq DESC LIMIT 1"""

_PRUNABLE: Final = """
    FROM reading WHERE seq >= ? AND seq < ? AND fetched_ms < ? AND NOT EXISTS (
        SELECT 1 FROM cursor WHERE cursor.seq < reading.seq AND NOT EXISTS (
            SELECT 1 FROM told WHERE told.sink = cursor.sink AND told.vehicle_id = reading.vehicle_id
                AND told.seq >= reading.seq))"""

OLDEST: Final = "SELECT min(fetched_ms) FROM reading WHERE seq >= ? AND seq < ?"

PRUNE_LEDGER: Final = "DELETE FROM ledger WHERE window_ms < ?"

ANY_OF_VEHICLE: Final = "SELECT 1 FROM reading WHERE seq >= ? AND seq < ? AND vehicle_id = ? LIMIT 1"

ERASE_OF_VEHICLE: Final = "DELETE FROM reading WHERE seq >= ? AND seq < ? AND vehicle_id = ?"

ERASE_REST: Final = "DELETE FROM reading WHERE seq >= ? AND vehicle_id = ?"

ERASE_REJECTED: Final = "DELETE FROM rejected WHERE vehicle_id = ?"

ERASE_EXCERPT: Final = "DELETE FROM excerpt WHERE vehicle_id = ?"

ERASE_STATE: Final = """
    UPDATE latest SET reading_seq = NULL, fetched_ms = NULL, origin = NULL, measured_ms = NULL,
        soc = NULL, range_km = NULL, capacity_kwh = NULL, charge_state = NULL, charging = NULL,
        plugged_in = NULL, charge_limit = NULL, charge_power_kw = NULL, time_to_full_s = NULL,
        odometer_km = NULL, times = NULL, learned = NULL
    WHERE vehicle_id = ?"""

EMPTY_LOG: Final = "PRAGMA wal_checkpoint(TRUNCATE)"
"""Its first column is 1 if it could not do all of it (https://sqlite.org/pragma.html#pragma_wal_checkpoint)."""

ANY_PRUNABLE: Final = "SELECT 1 " + _PRUNABLE + " LIMIT 1"

PRUNE: Final = "DELETE " + _PRUNABLE

NOTE_EVENT: Final = "INSERT INTO webhook_event (event_id, at_ms) VALUES (?, ?) ON CONFLICT DO NOTHING"

RECENT_EVENTS: Final = """
    SELECT event_id FROM (
        SELECT event_id, at_ms FROM webhook_event WHERE at_ms >= ? ORDER BY at_ms DESC LIMIT ?)
    ORDER BY at_ms"""

FORGET_EVENTS: Final = """
    DELETE FROM webhook_event
    WHERE event_id IN (SELECT event_id FROM webhook_event WHERE at_ms < ? ORDER BY at_ms LIMIT ?)"""

INVITE: Final = """
    INSERT INTO invitation (token, name, application_id, created_ms, expires_ms)
    VALUES (?, ?, ?, ?, ?) RETURNING id"""

_INVITATION: Final = """
    SELECT invitation.id, invitation.name, application.name, created_ms, expires_ms, used_ms, revoked_ms
    FROM invitation JOIN application ON application.id = application_id """

INVITATION: Final = _INVITATION + "WHERE token = ?"

INVITATION_BY_ID: Final = _INVITATION + "WHERE invitation.id = ?"

INVITATIONS: Final = _INVITATION + "ORDER BY invitation.id DESC LIMIT ?"

REVOKE_INVITATION: Final = """
    UPDATE invitation SET revoked_ms = ? WHERE id = ? AND used_ms IS NULL AND revoked_ms IS NULL"""

USE_INVITATION: Final = """
    UPDATE invitation SET used_ms = :at_ms
    WHERE id = :invitation AND used_ms IS NULL AND revoked_ms IS NULL AND expires_ms > :at_ms"""

BEGIN_ENROLMENT: Final = """
    INSERT INTO enrolment (state, browser, application_id, invitation_id, begun_ms, expires_ms)
    VALUES (?, ?, ?, ?, ?, ?) RETURNING id"""

_ENROLMENT: Final = """
    SELECT enrolment.id, application.name, begun_ms, enrolment.expires_ms, browser, invitation_id,
        invitation.name, ended_ms, ending, user_ref, arrived_ms
    FROM enrolment JOIN application ON application.id = enrolment.application_id
        LEFT JOIN invitation ON invitation.id = invitation_id """

ENROLMENT: Final = _ENROLMENT + "WHERE state = ?"

ENROLMENT_BY_ID: Final = _ENROLMENT + "WHERE enrolment.id = ?"

UNDER_WAY: Final = "SELECT invitation_id FROM enrolment WHERE id = ? AND ended_ms IS NULL"

END_ENROLMENT: Final = "UPDATE enrolment SET ended_ms = ?, ending = ?, user_ref = ? WHERE id = ?"

AWAITED: Final = (
    _ENROLMENT + "WHERE ending = 'consented' AND arrived_ms IS NULL ORDER BY ended_ms, enrolment.id"
)

ARRIVED: Final = "UPDATE enrolment SET arrived_ms = ? WHERE id = ? AND arrived_ms IS NULL"

FORGET_ENROLMENTS: Final = "DELETE FROM enrolment WHERE expires_ms < ?"

FORGET_INVITATIONS: Final = """
    DELETE FROM invitation WHERE expires_ms < ?
        AND NOT EXISTS (SELECT 1 FROM enrolment WHERE invitation_id = invitation.id)"""

PUBLISHED: Final = "SELECT place, slug, leaves, gone, digest FROM published ORDER BY place, slug"

NOTE_PUBLISHED: Final = """
    INSERT INTO published (place, slug, leaves, gone, digest) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (place, slug) DO UPDATE
        SET leaves = excluded.leaves, gone = excluded.gone, digest = excluded.digest"""

FORGET_PUBLISHED: Final = "DELETE FROM published WHERE place = ? AND slug = ?"

TAKE_MARK: Final = "DELETE FROM mark WHERE sink = ? RETURNING mark"

KEEP_MARK: Final = """
    INSERT INTO mark (sink, mark) VALUES (?, ?)
    ON CONFLICT (sink) DO UPDATE SET mark = excluded.mark"""
