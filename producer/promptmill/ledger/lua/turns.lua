-- Whose turn it is: fair queuing between submitters. Put in front of each script, after the prelude.
--
-- A pointer in a lane's list is a turn of that lane; which record gets it is found out when it is claimed. Each record
-- has a *turn*, a place on a scale of prompts: behind its submitter's record before it, by as many prompts as that one
-- has, and never before the lane's own time, the turn that was served last. The record with the least turn goes next.
-- So who comes with ten prompts beside a million of somebody else's gets the next turns, and two with a million each
-- share. (Start-time fair queuing: Goyal, Vin, Cheng, 1996.)
--
--   turns:<lane>     sorted set: queued records by the turn of their first open prompt
--   ends:<lane>      sorted set: submitters by the end of their newest record's turn
--   lane_time        hash: lane -> the turn that was served last, or a little later
--   served           hash: lane -> when one of its records was claimed last
--   lifted           hash: lane -> when a record was taken out of it, so that it does not starve, see sweep.lua
--
-- What is queued again goes first come, first served: its lane has no turns.

-- Each prompt that is served takes the lane's time on by a share of it, at least. In the stead of up to so many
-- submitters nobody notices; where more and more new ones came, those who wait would never be reached otherwise.
local MOST_SUBMITTERS = 64
-- How many records that have ended are taken out of the way of one claim at most.
local MOST_ENDED = 1000

local function lane_time(lane) return tonumber(redis.call('HGET', key('lane_time'), lane) or '0') end

-- The turn of a new record.
local function next_turn(lane, submitter, count)
  local ends, now = key('ends:' .. lane), lane_time(lane)
  redis.call('ZREMRANGEBYSCORE', ends, '-inf', exact(now))
  local turn = tonumber(redis.call('ZSCORE', ends, submitter) or now)
  redis.call('ZADD', ends, exact(turn + count), submitter)
  return turn
end

-- The record that goes next in a lane; nil if there is none. What has ended, or will with the next sweep, is taken out:
-- it would be chosen again and again.
local function next_in(lane, now)
  local turns, queued = key('turns:' .. lane), key('lane:' .. lane)
  for _ = 1, MOST_ENDED do
    local first = redis.call('ZRANGE', turns, 0, 0)[1]
    if not first then return nil end
    local deadline = redis.call('HGET', key('record:' .. first), 'deadline')
    if deadline and tonumber(deadline) > now and redis.call('ZSCORE', queued, first) then return first end
    give_up_turn(first)
    redis.call('ZREM', turns, first)
    redis.call('ZREM', queued, first)
  end
end

-- The record that gets the turn of the pointer with this score; nil if nobody waits for that pointer any more. Every
-- queued record of a lane has one pointer in its list, with the same score: where the turn goes to another than the
-- pointer's own, these two change places, so that each still has one.
local function whose_turn(lane, score, now)
  local queued = key('lane:' .. lane)
  local own = redis.call('ZRANGEBYSCORE', queued, score, score, 'LIMIT', 0, 1)[1]
  -- One without a turn (written by an older version) has no other chance than its pointer.
  if not own or not redis.call('ZSCORE', key('turns:' .. lane), own) then return own end
  local first = next_in(lane, now)
  if not first or first == own then return own end
  redis.call('ZADD', queued, 'XX', redis.call('ZSCORE', queued, first), own)
  redis.call('ZADD', queued, score, first)
  return first
end

-- The turn of a record's prompt at `position`; 0 where there are no turns.
local function turn_of(id, lane, position)
  local turn = not is_again_lane(lane) and redis.call('HGET', key('record:' .. id), 'turn')
  return turn and exact(turn + position) or '0'
end

-- Prompts of this lane were claimed, the first of them with this turn.
local function note_served(lane, turn, count, now)
  redis.call('HSET', key('served'), lane, text(now))
  if is_again_lane(lane) then return end
  local time = math.max(lane_time(lane) + count / MOST_SUBMITTERS, tonumber(turn))
  redis.call('HSET', key('lane_time'), lane, exact(time))
end
