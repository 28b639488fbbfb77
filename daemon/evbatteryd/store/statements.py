"""Every SQL statement of the store. Columns stand in the order in which ``codec`` makes and reads rows."""

from __future__ import annotations

from typing import Final

HEAD: Final = "SELECT seq FROM sqlite_sequence WHERE name = 'reading'"
"""AUTOINCREMENT's own count: it stands even when the newest readings were pruned."""

EPOCH: Final = "SELECT epoch FROM store"

CARS: Final = """
    SELECT vehicle.id, slug, vehicle.name, brand, enrolled_ms, withdrawn_ms,
        application.name, connection_id, vehicle_ref, user_ref, make, model, year, powertrain, permissions,
        reading_seq,
        fetched_ms, origin, measured_ms, soc, range_km, capacity_kwh, charge_state, charging, plugged_in,
        charge_limit, charge_power_kw, time_to_full_s, odometer_km, times,
        due_ms, reason, polled_ms, answered_ms, outcome, failures, activity, calls_per_poll,
        trouble_outcome, trouble_code, trouble_detail, trouble_since_ms
    FROM vehicle JOIN application ON application.id = application_id JOIN latest ON vehicle_id = vehicle.id
    ORDER BY vehicle.id"""

APPLICATION: Final = "SELECT id FROM application WHERE name = ?"

NEW_APPLICATION: Final = "INSERT INTO application (name) VALUES (?) RETURNING id"

ENROL: Final = """
    INSERT INTO vehicle (slug, name, brand, enrolled_ms, application_id,
        connection_id, vehicle_ref, user_ref, make, model, year, powertrain, permissions)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"""

FIRST_SCHEDULE: Final = """
    INSERT INTO latest (vehicle_id,
        due_ms, reason, polled_ms, answered_ms, outcome, failures, activity, calls_per_poll)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""

UPDATE_VEHICLE: Final = """
    UPDATE vehicle SET (name, withdrawn_ms, application_id,
        connection_id, vehicle_ref, user_ref, make, model, year, powertrain, permissions)
        = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
    WHERE id = ?1 AND (name, withdrawn_ms, application_id,
        connection_id, vehicle_ref, user_ref, make, model, year, powertrain, permissions)
        IS NOT (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"""
"""Writes nothing where nothing changed: most updates are of the schedule alone."""

UPDATE_LATEST: Final = """
    UPDATE latest SET due_ms = ?, reason = ?, polled_ms = ?, answered_ms = ?, outcome = ?, failures = ?,
        activity = ?, calls_per_poll = ?,
        trouble_outcome = ?, trouble_code = ?, trouble_detail = ?, trouble_since_ms = ?
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
        activity = ?, calls_per_poll = ?,
        trouble_outcome = ?, trouble_code = ?, trouble_detail = ?, trouble_since_ms = ?,
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

AFTER: Final = _READING + "WHERE seq > ? ORDER BY seq LIMIT ?"

HISTORY: Final = (
    _READING
    + "WHERE vehicle_id = ? AND measured_ms >= ? AND measured_ms < ? ORDER BY measured_ms, seq LIMIT ?"
)

CURSOR: Final = "SELECT seq FROM cursor WHERE sink = ?"

DELIVERED: Final = """
    INSERT INTO cursor (sink, seq) VALUES (?, ?)
    ON CONFLICT (sink) DO UPDATE SET seq = max(seq, excluded.seq)"""

FIRST: Final = "SELECT min(seq) FROM reading"

_PRUNABLE: Final = """
    FROM reading WHERE seq >= ? AND seq < ? AND fetched_ms < ?
        AND seq <= (SELECT coalesce(min(seq), 9223372036854775807) FROM cursor)"""

OLDEST: Final = "SELECT min(fetched_ms) FROM reading WHERE seq >= ? AND seq < ?"

PRUNE_LEDGER: Final = "DELETE FROM ledger WHERE window_ms < ?"

ANY_PRUNABLE: Final = "SELECT 1 " + _PRUNABLE + " LIMIT 1"

PRUNE: Final = "DELETE " + _PRUNABLE
