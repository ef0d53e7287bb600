-- What the loss of a worker means for its prompts; put in front of each script, after the prelude.

-- Other deaths than a prompt's own within this time say that workers die anyway, and not of the prompt.
local RESTLESS_US = 600 * 1000000
-- How many deaths alone convict a prompt: the first; in restless times a third, and one more for each ten deaths of
-- others, up to a sixth: where workers die by the dozen, one that is alone with an innocent dies now and then, too.
local DEATHS_ALONE, DEATHS_ALONE_RESTLESS, MOST_DEATHS_ALONE = 1, 3, 6
local DEAD_LETTERS = 1000
-- One line of a prompt's history: when, claim, alone or beside, why.
local LOSS = '^(%d+)|([^\n]*)|(%l+)|([^\n]*)$'
local EXPIRED = 'its lease expired'

local function note_death(token, now)
  redis.call('ZADD', key('deaths'), text(now), worker_of(token))
  redis.call('ZREMRANGEBYSCORE', key('deaths'), '-inf', text(now - RESTLESS_US))
  redis.call('EXPIRE', key('deaths'), RESTLESS_US / 1000000)
end

-- The worker of this claim lives: it was cut off, or slept. What it lost is no death of a worker, unless it said itself
-- that its engine had died.
local function acquit(token)
  local record = key('record:' .. record_of(token))
  for _, field in ipairs(redis.call('HKEYS', record)) do
    if string.sub(field, 1, 5) == 'lost:' then
      local left = {}
      for line in string.gmatch(redis.call('HGET', record, field), '[^\n]+') do
        local _, claim, _, why = string.match(line, LOSS)
        if claim == claim_of(token) and why == EXPIRED then
          redis.call('ZREM', key('deaths'), worker_of(token))
        else
          left[#left + 1] = line .. '\n'
        end
      end
      redis.call('HSET', record, field, table.concat(left))
    end
  end
end

-- Whether a prompt that died alone has to be taken for the cause.
local function is_convicted(history)
  local _, alone = string.gsub(history, '|alone|', '')
  local others = 0
  for _, worker in ipairs(redis.call('ZRANGE', key('deaths'), 0, -1)) do
    if not string.find(history, worker .. '|', 1, true) then others = others + 1 end
  end
  if others == 0 then return alone >= DEATHS_ALONE end
  return alone >= math.min(DEATHS_ALONE_RESTLESS + math.floor(others / 10), MOST_DEATHS_ALONE)
end

-- Ends a prompt that kills its workers: answered with an error, and kept, with its history, to be looked at.
local function bury(id, position, history)
  local record = key('record:' .. id)
  local requests, version, lane, entered, deadline, ttl =
    unpack(redis.call('HMGET', record, 'requests', 'version', 'lane', 'entered', 'deadline', 'ttl'))
  local at, request = 0, ''
  for line in string.gmatch(requests, '[^\n]+') do
    if at == tonumber(position) then request = line end
    at = at + 1
  end
  local task = position == '0' and id or id .. ':' .. position
  local deaths = {}
  for line in string.gmatch(history, '[^\n]+') do
    local us, claim, company, why = string.match(line, LOSS)
    local worker = string.match(claim, '@(.*)$') or claim
    deaths[#deaths + 1] = {worker = worker, at = us / 1000000, alone = company == 'alone', why = why}
  end
  local message = #deaths .. ' workers died under this prompt, the last one while it ran alone: it is kept, see ' ..
    '`promptmill dead-letter show ' .. task .. '`'
  answer(id, {position, cjson.encode({error = {type = 'TooManyDeliveriesError', args = {message, #deaths}}})})
  local _, priority = queue_and_priority(lane)
  redis.call('XADD', key('dead_letters'), 'MAXLEN', DEAD_LETTERS, '*', 'task', task,
    'queue', model_queue(lane), 'priority', priority, 'version', version, 'request', request,
    'timeout_ms', text((deadline - entered) / 1000), 'ttl', ttl, 'reason', message, 'history', cjson.encode(deaths))
end

local function count_loss(id, position, line, alone)
  local history = (redis.call('HGET', key('record:' .. id), 'lost:' .. position) or '') .. line
  redis.call('HSET', key('record:' .. id), 'lost:' .. position, history)
  if alone and is_convicted(history) then bury(id, position, history) end
end

-- Ends the claim of a worker that is lost, and counts an attempt for each prompt that was in its engine: all of them,
-- but for those that are known to be `innocent`. Returns whether some of it has to be queued again; nil if there was no
-- such claim.
local function lose(id, token, why, now, innocent)
  local record = key('record:' .. id)
  local held, alone, keep = unpack(redis.call('HMGET', record, 'claim:' .. token, 'alone:' .. token, 'keep'))
  end_claim(id, token)
  if not held then return nil end
  local back = unanswered(id, split(held))
  if alone ~= 'waiting' then
    local line = text(now) .. '|' .. claim_of(token) .. '|' .. (alone and 'alone' or 'beside') .. '|' .. why .. '\n'
    if #back > 0 then redis.call('HSET', record, 'lost', '1') end
    local is_innocent = {}
    for _, position in ipairs(innocent or {}) do is_innocent[position] = true end
    for _, position in ipairs(back) do
      if not is_innocent[position] then count_loss(id, position, line, alone) end
    end
    back = unanswered(id, back)
  end
  if is_complete(id) then
    conclude(id, now)
    return false
  end
  if #back > 0 then
    redis.call('HSET', record, 'open', redis.call('HGET', record, 'open') .. ' ' .. join(back))
  end
  return #back > 0
end
